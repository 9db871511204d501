//! The command line of `history` and `rejected`: types that clap fills.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::history::export::Format;
use crate::history::{Filter, State, When};
use crate::protocol::{MacAddress, SessionId, UnixMillis};

/// Arguments of `history`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct HistoryArgs {
    /// What to do with the history
    #[command(subcommand)]
    pub command: HistoryCommand,
}

/// What to do with the history.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum HistoryCommand {
    /// List sessions, the youngest first
    List(ListArgs),
    /// Show the transcript of one session
    Show(ShowArgs),
    /// Find what was said
    Search(SearchArgs),
    /// Write conversations to a file or to standard output
    Export(ExportArgs),
    /// Read an export (JSON or JSONL) back into the store
    Import(ImportArgs),
    /// Delete a device's or a session's history everywhere on this host
    Forget(ForgetArgs),
    /// Read the whole store, and salvage it when it is damaged
    Check,
    /// Print the JSON Schema of exports
    Schema,
}

/// Which history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct FilterArgs {
    /// Of this device
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddress>,
    /// Of this agent
    #[arg(long, value_name = "ID")]
    pub agent: Option<String>,
    /// Of this session
    #[arg(long, value_name = "ID", value_parser = SessionId::new)]
    pub session: Option<SessionId>,
    /// Not before: 2025-09-24, 2025-09-24T08:19:33Z, 2h, today, yesterday (UTC)
    #[arg(long, value_name = "TIME")]
    pub from: Option<When>,
    /// Not after; a day is meant to its end
    #[arg(long, value_name = "TIME")]
    pub to: Option<When>,
    /// In this state
    #[arg(long, value_enum)]
    pub state: Option<State>,
}

impl FilterArgs {
    /// The filter they mean now.
    #[must_use]
    pub fn filter(&self, now: UnixMillis) -> Filter {
        Filter {
            mac: self.mac,
            agent: self.agent.clone(),
            session: self.session.clone(),
            from: self.from.map(|when| when.as_from(now)),
            to: self.to.map(|when| when.as_to(now)),
            state: self.state,
        }
    }
}

/// Shape of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// For people.
    Text,
    /// JSON.
    Json,
}

/// Arguments of `history list`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ListArgs {
    /// Which sessions
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    /// Shape of the output
    #[arg(long, value_enum, default_value_t = Shape::Text)]
    pub format: Shape,
}

/// Arguments of `history show`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ShowArgs {
    /// The session id
    #[arg(value_name = "SESSION", value_parser = SessionId::new)]
    pub session: SessionId,
    /// The device, when several have a session of this id
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddress>,
    /// Not before: 2025-09-24, 2025-09-24T08:19:33Z, 2h, today, yesterday (UTC)
    #[arg(long, value_name = "TIME")]
    pub from: Option<When>,
    /// Not after; a day is meant to its end
    #[arg(long, value_name = "TIME")]
    pub to: Option<When>,
    /// Only messages in this state
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// At most so many messages
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Shape of the output
    #[arg(long, value_enum, default_value_t = Shape::Text)]
    pub format: Shape,
}

/// Arguments of `history search`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct SearchArgs {
    /// Words, or how words begin, in any order, in any script; "…" inside it for a phrase of whole words
    #[arg(value_name = "TEXT")]
    pub text: String,
    /// Which messages
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
    /// Shape of the output
    #[arg(long, value_enum, default_value_t = Shape::Text)]
    pub format: Shape,
}

/// Arguments of `history export`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ExportArgs {
    /// The format
    #[arg(long, value_enum, default_value_t = Format::Json)]
    pub format: Format,
    /// The file, which appears when it is whole; standard output when left out
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Which messages
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many messages
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// CSV: begin with a byte order mark, by which spreadsheets recognise UTF-8
    #[arg(long)]
    pub bom: bool,
    /// JSON, JSONL: the audio, too
    #[arg(long)]
    pub audio: bool,
}

/// Arguments of `history import`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ImportArgs {
    /// The export; - reads standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Arguments of `history forget`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(group = clap::ArgGroup::new("whose").required(true).multiple(true).args(["mac", "session"]))]
pub struct ForgetArgs {
    /// The device
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddress>,
    /// The session; of this device only, when both are given
    #[arg(long, value_name = "ID", value_parser = SessionId::new)]
    pub session: Option<SessionId>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Messages the Manager API does not have yet, too
    #[arg(long)]
    pub including_undelivered: bool,
}

/// Arguments of `rejected`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct RejectedArgs {
    /// What to do with rejected messages
    #[command(subcommand)]
    pub command: RejectedCommand,
}

/// What to do with rejected messages.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum RejectedCommand {
    /// List them with their reasons
    List(RejectedListArgs),
    /// Show one with its text
    Show(RejectedShowArgs),
    /// Hand them to the uploader again
    Retry(RejectedPickArgs),
    /// Delete them
    Drop(RejectedDropArgs),
}

/// Arguments of `rejected list`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct RejectedListArgs {
    /// Which messages
    #[command(flatten)]
    pub pick: RejectedFilterArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    /// Shape of the output
    #[arg(long, value_enum, default_value_t = Shape::Text)]
    pub format: Shape,
}

/// Arguments of `rejected show`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct RejectedShowArgs {
    /// Its number in the list
    #[arg(value_name = "NUMBER")]
    pub number: i64,
    /// Shape of the output
    #[arg(long, value_enum, default_value_t = Shape::Text)]
    pub format: Shape,
}

/// Which rejected messages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct RejectedFilterArgs {
    /// Of this device
    #[arg(long, value_name = "MAC")]
    pub mac: Option<MacAddress>,
    /// Of this session
    #[arg(long, value_name = "ID", value_parser = SessionId::new)]
    pub session: Option<SessionId>,
    /// Rejected for this reason
    #[arg(long, value_name = "REASON", value_parser = ["invalid", "refused_by_server", "device_not_registered", "damaged"])]
    pub reason: Option<String>,
}

/// Arguments of `rejected retry`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true).args(["numbers", "all", "mac", "session", "reason"]))]
pub struct RejectedPickArgs {
    /// Their numbers in the list
    #[arg(value_name = "NUMBER")]
    pub numbers: Vec<i64>,
    /// All of them
    #[arg(long, conflicts_with = "numbers")]
    pub all: bool,
    /// Which messages
    #[command(flatten)]
    pub pick: RejectedFilterArgs,
}

/// Arguments of `rejected drop`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct RejectedDropArgs {
    /// Which messages
    #[command(flatten)]
    pub which: RejectedPickArgs,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}
