//! `chat-historyd(8)`: every command with its options as the command line defines them, on one page.

use std::io;

use clap::Command;
use clap_mangen::Man;
use roff::{Roff, bold};

use crate::definition;
use crate::words::{Edition, entry, paragraph, prose, tidy};

const DESCRIPTION: [&str; 2] = [
    "`chat-historyd` stands beside a voice agent. It takes what was said as JSON lines from a Unix socket, keeps each line in a \
     database on this machine before it acknowledges it, and brings it to the Manager API, in order and whatever happens to the \
     agent, the API, the network or the disk.",
    "Without a command it serves, usually as the systemd service `chat-historyd.service`, whose socket \
     `chat-historyd.socket` stays open over restarts. The other commands look at a running daemon and at what it keeps.",
];

const SIGNALS: [(&str, &str); 2] = [
    (
        "SIGTERM, SIGINT",
        "Reads what producers have sent, keeps it, goes on delivering for `upload.shutdown_grace` and ends with 0. \
         A second one skips the grace.",
    ),
    (
        "SIGHUP",
        "Reads configuration, secret and authorities again. A configuration that cannot be used keeps the old settings, \
         and what needs a restart is named in the log.",
    ),
];

const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "CHAT_HISTORYD__SECTION__KEY",
        "Sets a key of the configuration, over the file: `CHAT_HISTORYD__MANAGER_API__URL` is `manager_api.url`. \
         An empty one counts as not set.",
    ),
    (
        "RUNTIME_DIRECTORY, STATE_DIRECTORY, CONFIGURATION_DIRECTORY, CREDENTIALS_DIRECTORY",
        "As systemd sets them: where the sockets, the database, the configuration and the secret are, unless they are configured.",
    ),
];

const FILES: [(&str, &str); 5] = [
    ("/etc/chat-historyd/chat-historyd.toml", "The configuration, see `chat-historyd.toml`(5)."),
    (
        "/etc/chat-historyd/manager-api-secret",
        "The secret of the Manager API, mode 0600 and owned by root: systemd reads it and hands it to the service.",
    ),
    ("/run/chat-historyd/events.sock", "Where producers connect: members of the group `chat-history`."),
    ("/run/chat-historyd/status.sock", "Where `chat-historyd status` asks."),
    (
        "/var/lib/chat-historyd",
        "The database `history.db`, the index of words `search.db`, a JSON file for each ended session under `backup`, \
         and damaged databases under `corrupt`.",
    ),
];

/// The whole page.
pub fn page(edition: &Edition) -> io::Result<String> {
    let mut command = hide_what_repeats(definition(), true);
    command.build();
    let mut page = edition.title("CHAT-HISTORYD", "8", "System Administration").to_roff();
    let man = Man::new(command.clone());
    page += &render(|out| man.render_name_section(out))?;
    page += &render(|out| man.render_synopsis_section(out))?;
    page += &section("DESCRIPTION", |roff| DESCRIPTION.iter().for_each(|text| paragraph(roff, text)));
    page += &render(|out| man.render_options_section(out))?;
    page += &section("COMMANDS", |_| ());
    for sub in command.get_subcommands() {
        page += &commands(sub, sub.get_name())?;
    }
    page += &section("EXIT STATUS", |_| ());
    page += &exit_status(&command)?;
    page += &entries("SIGNALS", &SIGNALS);
    page += &entries("ENVIRONMENT", &ENVIRONMENT);
    page += &entries("FILES", &FILES);
    page += &section("SEE ALSO", |roff| {
        roff.text(prose("`chat-historyd.toml`(5), `systemctl`(1), `journalctl`(1), `sqlite3`(1)"));
    });
    Ok(tidy(&page))
}

/// `--help` and the global options on each command would bury the rest: they stand at the top.
fn hide_what_repeats(command: Command, root: bool) -> Command {
    let command = command.disable_help_subcommand(true).disable_help_flag(!root).mut_args(|argument| argument.global(false));
    command.mut_subcommands(|sub| hide_what_repeats(sub, false))
}

/// A command and those below it; only what can be run is shown.
fn commands(command: &Command, name: &str) -> io::Result<String> {
    if command.has_subcommands() {
        return command.get_subcommands().map(|sub| commands(sub, &format!("{name} {}", sub.get_name()))).collect();
    }
    let man = Man::new(command.clone());
    let mut page = Roff::new();
    page.control("SS", [name]);
    let mut page = page.to_roff();
    page += body(&render(|out| man.render_synopsis_section(out))?);
    page += ".PP\n";
    page += body(&render(|out| man.render_description_section(out))?);
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        page += body(&render(|out| man.render_options_section(out))?);
    }
    Ok(page)
}

fn render(part: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<String> {
    let mut bytes = Vec::new();
    part(&mut bytes)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// A rendered section without its heading.
fn body(section: &str) -> &str {
    section.split_once(".SH").and_then(|(_, rest)| rest.split_once('\n')).map_or(section, |(_, body)| body)
}

fn section(title: &str, fill: impl FnOnce(&mut Roff)) -> String {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    fill(&mut roff);
    roff.to_roff()
}

fn entries(title: &str, all: &[(&str, &str)]) -> String {
    section(title, |roff| all.iter().for_each(|(term, text)| entry(roff, vec![bold(*term)], text)))
}

/// The codes as `--help` lists them: `Exit codes: 0 done, 1 …`.
fn exit_status(command: &Command) -> io::Result<String> {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let line = help.lines().find_map(|line| line.strip_prefix("Exit codes: "));
    let line = line.ok_or_else(|| io::Error::other("--help has no line that begins with \"Exit codes: \""))?;
    let mut roff = Roff::new();
    for (code, meaning) in codes(line) {
        entry(&mut roff, vec![bold(code)], &format!("{meaning}."));
    }
    Ok(roff.to_roff())
}

/// `0 done, 73 cannot create a, b, 75 there` as numbers with their meanings.
fn codes(line: &str) -> Vec<(String, String)> {
    let mut codes: Vec<(String, String)> = Vec::new();
    for piece in line.trim_end_matches('.').split(", ") {
        match (piece.split_once(' '), codes.last_mut()) {
            (Some((code, meaning)), _) if code.bytes().all(|byte| byte.is_ascii_digit()) => {
                codes.push((code.to_owned(), meaning.to_owned()));
            }
            (_, Some((_, meaning))) => {
                meaning.push_str(", ");
                meaning.push_str(piece);
            }
            _ => {}
        }
    }
    codes
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::CHANGELOG;

    const README: &str = include_str!("../../README.md");

    fn made() -> String {
        // Without the escapes of roff, as it is read.
        page(&Edition::of(CHANGELOG).unwrap())
            .unwrap()
            .replace("\\-", "-")
            .replace("\\fB", "")
            .replace("\\fI", "")
            .replace("\\fR", "")
    }

    /// Every command that can be run, by its words.
    fn leaves(command: &Command, name: &str) -> Vec<(String, Command)> {
        if command.has_subcommands() {
            let subs = command.get_subcommands().filter(|sub| sub.get_name() != "help");
            return subs.flat_map(|sub| leaves(sub, format!("{name} {}", sub.get_name()).trim())).collect();
        }
        vec![(name.to_owned(), command.clone())]
    }

    #[test]
    fn every_command_stands_there_with_every_option_of_it_and_nothing_twice() {
        let page = made();
        let all = leaves(&definition(), "");
        assert!(all.len() > 10);
        for (name, command) in all {
            let heading = [format!(".SS {name}\n"), format!(".SS \"{name}\"\n")];
            let parts: Vec<&str> =
                heading.iter().filter_map(|heading| page.split_once(heading.as_str())).map(|(_, rest)| rest).collect();
            assert_eq!(parts.len(), 1, "{name}");
            let part = parts.first().unwrap().split("\n.S").next().unwrap();
            for argument in command.get_arguments() {
                if let Some(long) = argument.get_long() {
                    assert!(part.contains(&format!("\n--{long}")) || part.contains(&format!(", --{long}")), "{name}: --{long}");
                }
            }
            assert!(!part.contains("--help") && !part.contains("--log-level"), "{name} repeats what stands above:\n{part}");
        }
        let options = page.split(".SH OPTIONS").nth(1).unwrap().split("\n.SH").next().unwrap();
        for option in ["--config", "--log-level", "--check-config", "--help", "--version"] {
            assert!(options.contains(option), "{option}");
        }
    }

    #[test]
    fn the_exit_codes_are_those_of_the_readme() {
        let rows =
            README.lines().skip_while(|line| !line.starts_with("| code |")).skip(2).take_while(|line| line.starts_with('|'));
        let told: Vec<&str> = rows.filter_map(|row| row.split('|').nth(1)).map(str::trim).collect();
        let help = definition().get_after_help().unwrap().to_string();
        let line = help.lines().find_map(|line| line.strip_prefix("Exit codes: ")).unwrap();
        let codes = codes(line);
        assert_eq!(codes.iter().map(|(code, _)| code.as_str()).collect::<Vec<_>>(), told);
        assert!(codes.iter().all(|(_, meaning)| !meaning.is_empty()));
        assert_eq!(super::codes("0 a, b, 7 c."), [("0".to_owned(), "a, b".to_owned()), ("7".to_owned(), "c".to_owned())]);
        assert!(exit_status(&Command::new("x")).is_err());
    }

    #[test]
    fn the_files_and_settings_it_names_are_those_of_the_readme_and_the_configuration() {
        for (file, _) in FILES {
            assert!(README.contains(file) || crate::CONFIGURATION.contains(file), "{file}");
        }
        assert!(crate::CONFIGURATION.contains("# shutdown_grace = ") && crate::CONFIGURATION.contains("# url = "));
    }
}
