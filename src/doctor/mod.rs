//! `chat-historyd doctor`: looks at everything a running system needs, and says how to mend what is wrong.
//!
//! Promises: it changes nothing, here or at the server (the only report it sends is the empty one, which every server
//! refuses); every look has a deadline; the secret is never shown. Exit code 0 when all is sound or there is only
//! advice, 1 when something is broken, 78 when the configuration cannot be used. Runs beside a daemon or without one.

mod daemon;
mod finding;
mod local;
mod server;
mod store;

use std::io::Write;

use serde_json::json;

use crate::cli::{DoctorArgs, DoctorFormat};
use crate::config::{self, Sources};
use crate::exit::Exit;
use finding::{Finding, Level};

/// The version of the JSON object: raised when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// Looks at everything and prints what it finds.
pub fn doctor(arguments: &DoctorArgs, sources: &Sources, out: &mut impl Write) -> Exit {
    let (findings, usable) = examine(arguments, sources);
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Sound);
    let text = match arguments.format {
        DoctorFormat::Text => findings.iter().map(ToString::to_string).collect::<String>() + verdict(worst) + "\n",
        DoctorFormat::Json => {
            let list: Vec<_> = findings.iter().map(Finding::json).collect();
            format!("{:#}\n", json!({ "v": VERSION, "verdict": worst.as_str(), "findings": list }))
        }
    };
    // A closed pipe is the reader's wish.
    let _ = out.write_all(text.as_bytes());
    match worst {
        _ if !usable => Exit::Configuration,
        Level::Broken => Exit::Broken,
        Level::Advice | Level::Sound => Exit::Success,
    }
}

const fn verdict(worst: Level) -> &'static str {
    match worst {
        Level::Sound => "everything is sound",
        Level::Advice => "nothing is broken",
        Level::Broken => "something is broken",
    }
}

/// What is found, and whether the configuration could be used, without which nothing else can be looked at.
fn examine(arguments: &DoctorArgs, sources: &Sources) -> (Vec<Finding>, bool) {
    let mut findings = Vec::new();
    let mut usable = true;
    match config::load(sources) {
        Ok(loaded) => {
            // The secret has a look of its own, which also knows the credential of the running unit.
            let warnings = loaded.warnings.iter().filter(|problem| problem.key != "manager_api.secret_file");
            findings.extend(warnings.map(|problem| Finding::of_problem(Level::Advice, problem)));
            findings.push(match &loaded.file {
                Some(file) => Finding::sound("config", format!("{} can be used", file.display())),
                None => Finding::sound("config", "there is no file: the defaults are used".to_owned()),
            });
            let settings = loaded.settings;
            findings.extend(local::directories(&settings));
            findings.extend(store::examine(&settings.store));
            findings.push(local::disk(&settings.store));
            let counted = findings.iter().any(|finding| finding.check == "rejected");
            let told = daemon::examine(&settings).into_iter();
            // The store's own word is newer than the daemon's.
            findings.extend(told.filter(|finding| !counted || finding.check != "rejected"));
            findings.extend(server::examine(&settings.manager_api, arguments.mac));
        }
        Err(error) => {
            usable = false;
            findings.extend(error.problems.iter().map(|problem| Finding::of_problem(Level::Broken, problem)));
            findings.extend(error.warnings.iter().map(|problem| Finding::of_problem(Level::Advice, problem)));
        }
    }
    (findings, usable)
}
