//! What a package ships to be read and pressed Tab on: `chat-historyd(8)`, `chat-historyd.toml(5)` and the completions of three
//! shells. Each is made of the one place where its truth stands: the definition of the command line, and the commented
//! `chat-historyd.toml`. An example of the crate, so that neither the daemon nor its build carries any of it.
//!
//!     cargo run --example manual -- DIRECTORY

use std::fs::{create_dir_all, write};
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use clap_complete::aot::{Shell, generate};

mod command;
mod configuration;
mod words;

use words::Edition;

const CHANGELOG: &str = include_str!("../debian/changelog");
const CONFIGURATION: &str = include_str!("../../chat-historyd.toml");

fn main() -> io::Result<()> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or_else(|| io::Error::other("usage: manual DIRECTORY"))?;
    create_dir_all(&directory)?;
    write_all(&directory)
}

fn write_all(directory: &Path) -> io::Result<()> {
    let edition = Edition::of(CHANGELOG)?;
    write(directory.join("chat-historyd.8"), command::page(&edition)?)?;
    write(directory.join("chat-historyd.toml.5"), configuration::page(CONFIGURATION, &edition)?)?;
    write(directory.join("chat-historyd.bash"), mended(&completions(Shell::Bash)))?;
    write(directory.join("_chat-historyd"), completions(Shell::Zsh))?;
    write(directory.join("chat-historyd.fish"), completions(Shell::Fish))
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    generate(shell, &mut definition(), "chat-historyd", &mut text);
    text
}

/// `clap_complete` 4.6 spells a program's hyphen in two ways, so that bash would complete nothing behind a command (clap-rs/clap
/// issue 6421). Where it is mended this changes nothing.
fn mended(bash: &[u8]) -> String {
    String::from_utf8_lossy(bash).replace("chat__subcmd__historyd", "chat__historyd")
}

/// The command line as the daemon reads it.
fn definition() -> Command {
    chat_historyd::cli::Cli::command()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn all_five_files_are_written_and_the_completions_know_every_command() {
        let directory = tempfile::tempdir().unwrap();
        write_all(directory.path()).unwrap();
        let mut names: Vec<_> =
            std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(
            names,
            ["_chat-historyd", "chat-historyd.8", "chat-historyd.bash", "chat-historyd.fish", "chat-historyd.toml.5"]
        );
        for shell in ["_chat-historyd", "chat-historyd.bash", "chat-historyd.fish"] {
            let text = std::fs::read_to_string(directory.path().join(shell)).unwrap();
            for command in definition().get_subcommands() {
                assert!(text.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }

    #[test]
    fn the_changelog_ends_in_this_version() {
        let edition = Edition::of(CHANGELOG).unwrap();
        assert_eq!(edition.source, concat!("chat-historyd ", env!("CARGO_PKG_VERSION")));
        for broken in ["", "chat-historyd (0.1.0-1) x; urgency=low\n", "a (1-1) x; urgency=low\n -- a <b>  yesterday\n"] {
            assert!(Edition::of(broken).is_err(), "{broken}");
        }
    }
}
