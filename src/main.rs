//! The daemon's entry.

use chat_historyd::check_config::check_config;
use chat_historyd::cli::{Cli, Command};
use chat_historyd::config::{Environment, Purpose};
use chat_historyd::exit::Exit;
use chat_historyd::{daemon, demo, doctor, history_command, send, status_command};

fn main() -> Exit {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(exit) => return exit,
    };
    let environment = Environment::of_process();
    match &cli.command {
        None if cli.check_config => {
            let sources = cli.sources(environment, Purpose::Look);
            check_config(&sources, &mut std::io::stdout().lock(), &mut std::io::stderr().lock())
        }
        None => daemon::run(&cli.sources(environment, Purpose::Serve)),
        Some(Command::Doctor(arguments)) => {
            doctor::doctor(arguments, &cli.sources(environment, Purpose::Look), &mut std::io::stdout().lock())
        }
        Some(Command::Demo) => demo::demo(&mut std::io::stdout().lock()),
        Some(Command::Send(arguments)) => send::send(arguments, &cli.sources(environment, Purpose::Look)),
        Some(Command::Status(arguments)) => {
            status_command::status(arguments, &cli.sources(environment, Purpose::Look), &mut std::io::stdout().lock())
        }
        Some(Command::History(arguments)) => {
            history_command::history(&arguments.command, &cli.sources(environment, Purpose::Look))
        }
        Some(Command::Rejected(arguments)) => {
            history_command::rejected(&arguments.command, &cli.sources(environment, Purpose::Look))
        }
    }
}
