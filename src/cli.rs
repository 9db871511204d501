//! The command line: types that clap fills, and nothing else. No option takes a secret, for argv is public.

pub mod history;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use self::history::{HistoryArgs, RejectedArgs};
use crate::config::{Environment, Override, Purpose, Sources};
use crate::exit::Exit;
use crate::protocol::{ChatType, MacAddress, SessionId};

/// Brings every sentence spoken with a voice agent to the Manager API. Without a command it serves.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "chat-historyd", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Configuration file, instead of the first of the usual places that exists
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log level, over file and environment
    #[arg(long, global = true, value_name = "LEVEL", value_parser = PossibleValuesParser::new(["trace", "debug", "info", "warn", "error"]))]
    pub log_level: Option<String>,
    /// Check the configuration, print the effective settings and exit: 0 usable, 78 not
    #[arg(long)]
    pub check_config: bool,
    /// What to do instead of serving
    #[command(subcommand)]
    pub command: Option<Command>,
}

const AFTER_HELP: &str = "\
Configuration: --config FILE, else chat-historyd.toml in $CONFIGURATION_DIRECTORY, /etc/chat-historyd or ~/.config/chat-historyd;
over it the environment (CHAT_HISTORYD__SECTION__KEY). The secret comes from a file, the environment or a systemd credential.
Exit codes: 0 done, 1 doctor found something broken, 64 usage, 69 no daemon there, 70 internal failure, 73 cannot create socket or store, 75 already running, 78 configuration.";

/// The shortest time between two looks at the status.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// A subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Show the main job: play a bundled conversation through a throw-away daemon
    Demo,
    /// Check everything a running system needs, and say how to mend it: exit code 0 sound, 1 broken
    Doctor(DoctorArgs),
    /// Send one message to the running daemon
    Send(SendArgs),
    /// Show how the running daemon is
    Status(StatusArgs),
    /// List, read, search, export and delete what was said
    History(HistoryArgs),
    /// Messages that the Manager API will never take: look at them, try again, delete them
    Rejected(RejectedArgs),
}

/// Arguments of `send`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct SendArgs {
    /// The device; may be left out when the session id ends in it
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddress>,
    /// The session id
    #[arg(long, value_name = "ID", value_parser = SessionId::new)]
    pub session: SessionId,
    /// Who said it
    #[arg(long, alias = "chat-type", default_value = "user", value_parser = role())]
    pub role: ChatType,
    /// When it was said: seconds since 1970 or RFC 3339; now when left out
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub time: Option<String>,
    /// An id of your own: the same id in the same session is stored once
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// The daemon's socket, instead of socket.path of the configuration (or, where nothing sets that and none is at its
    /// usual place, the service's in /run/chat-historyd)
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// What was said; - reads it from standard input
    #[arg(value_name = "TEXT")]
    pub text: String,
}

/// Arguments of `status`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// Shape of the output
    #[arg(long, value_enum, default_value_t = StatusFormat::Text)]
    pub format: StatusFormat,
    /// The daemon's status socket, instead of status.socket of the configuration (or, where nothing sets that and none is
    /// at its usual place, the service's in /run/chat-historyd)
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Show it again and again, every 2 s or every TIME ("500ms", "10s"), until it is interrupted
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "2s", value_parser = pause)]
    pub watch: Option<Duration>,
}

/// Arguments of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct DoctorArgs {
    /// Shape of the output
    #[arg(long, value_enum, default_value_t = DoctorFormat::Text)]
    pub format: DoctorFormat,
    /// Also ask whether this device is registered
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddress>,
}

/// Shape of the output of `doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DoctorFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// Shape of the output of `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StatusFormat {
    /// For people.
    Text,
    /// One JSON object.
    Json,
    /// The metrics in Prometheus' text format.
    Prometheus,
}

fn pause(text: &str) -> Result<Duration, String> {
    let pause = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if pause < SHORTEST_PAUSE { Err("at least 100ms".to_owned()) } else { Ok(pause) }
}

fn role() -> impl TypedValueParser<Value = ChatType> {
    let words = [PossibleValue::new("user").alias("1"), PossibleValue::new("agent").aliases(["2", "assistant"])];
    PossibleValuesParser::new(words)
        .map(|word| if matches!(word.as_str(), "user" | "1") { ChatType::User } else { ChatType::Agent })
}

impl Cli {
    /// Reads the command line; what is to be said about it (help, version, a mistake) is printed here.
    ///
    /// # Errors
    /// How the process is to end: success after help or version, else [`Exit::Usage`].
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Exit> {
        Self::parse_strictly(arguments).map_err(|error| {
            // Nothing is left to do when even the terminal is gone.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Success }
        })
    }

    fn parse_strictly(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let cli = Self::try_parse_from(arguments)?;
        if cli.check_config && cli.command.is_some() {
            return Err(Self::command().error(ErrorKind::ArgumentConflict, "--check-config cannot be used with a command"));
        }
        Ok(cli)
    }

    /// What the settings are to be loaded from.
    #[must_use]
    pub fn sources(&self, environment: Environment, purpose: Purpose) -> Sources {
        let level = self.log_level.iter().map(|level| Override { key: "log.level", value: level.clone(), option: "--log-level" });
        Sources { file: self.config.clone(), environment, overrides: level.collect(), purpose }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::parse_strictly(["chat-historyd"].into_iter().chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_means_serve() {
        let cli = parse("").unwrap();
        assert_eq!(cli.command, None);
        assert!(!cli.check_config);
    }

    #[test]
    fn the_file_may_be_named_before_and_after_the_command() {
        for line in
            ["--config /x.toml status", "status --config /x.toml", "status --config=/x.toml --format json", "--config /x.toml"]
        {
            assert_eq!(parse(line).unwrap().config, Some(PathBuf::from("/x.toml")), "{line}");
        }
    }

    #[test]
    fn a_message_needs_a_session_and_a_text() {
        let cli = parse("send --mac AA-BB-CC-DD-EE-FF --session room --role agent --time 1758701973.25 --id 7 hello").unwrap();
        let Some(Command::Send(send)) = cli.command else { panic!("no send") };
        assert_eq!(send.mac.unwrap().to_string(), "aa:bb:cc:dd:ee:ff");
        assert_eq!(send.role, ChatType::Agent);
        assert_eq!((send.time.as_deref(), send.id.as_deref(), send.text.as_str()), (Some("1758701973.25"), Some("7"), "hello"));
        let cli = parse("send --session room --chat-type 1 -").unwrap();
        let Some(Command::Send(send)) = cli.command else { panic!("no send") };
        assert_eq!((send.role, send.text.as_str(), send.mac), (ChatType::User, "-", None));
        for line in
            ["send --session room", "send hello", "send --session room --mac 12 hello", "send --session room --role 7 hello"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_status_is_watched_every_two_seconds_or_as_told() {
        let watch = |line: &str| match parse(line).map(|cli| cli.command) {
            Ok(Some(Command::Status(status))) => Some(status.watch),
            _ => None,
        };
        assert_eq!(watch("status"), Some(None));
        assert_eq!(watch("status --watch"), Some(Some(Duration::from_secs(2))));
        assert_eq!(watch("status --watch=250ms --format json"), Some(Some(Duration::from_millis(250))));
        assert_eq!(watch("status --watch=1ms"), None);
        assert_eq!(watch("status --watch=soon"), None);
    }

    #[test]
    fn checking_goes_with_no_command() {
        assert!(parse("--check-config --config /x.toml").unwrap().check_config);
        assert!(parse("--check-config demo").is_err());
    }

    #[test]
    fn a_mistake_is_usage_and_help_is_success() {
        let read = |line: &str| Cli::read(["chat-historyd", line].map(OsString::from));
        assert_eq!(read("--nonsense"), Err(Exit::Usage));
        assert_eq!(read("--log-level=loud"), Err(Exit::Usage));
        assert_eq!(read("nonsense"), Err(Exit::Usage));
        assert_eq!(read("--help"), Err(Exit::Success));
        assert_eq!(read("--version"), Err(Exit::Success));
    }

    #[test]
    fn no_option_takes_a_secret() {
        let all = Cli::command();
        let commands = std::iter::once(&all).chain(all.get_subcommands());
        for argument in commands.flat_map(clap::Command::get_arguments) {
            let id = argument.get_id().as_str();
            assert!(!["secret", "token", "password", "key"].iter().any(|word| id.contains(word)), "{id}");
        }
    }
}
