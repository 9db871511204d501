//! `chat-historyd doctor`: looks at everything a running system needs, and says how to mend what is wrong.
//!
//! Promises: it changes nothing, here or at the server (the only report it sends is the empty one, which every server
//! refuses); every look at a disk, the daemon or the server has a deadline; the secret is never shown. Exit code 0 when all is sound or there is only
//! advice, 1 when something is broken, 78 when the configuration cannot be used. Runs beside a daemon or without one.

mod daemon;
mod daemons_user;
mod finding;
mod local;
mod server;
mod store;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::cli::{DoctorArgs, DoctorFormat};
use crate::config::{self, Sources};
use crate::exit::Exit;
use crate::patience;
use daemons_user::DaemonsUser;
use finding::{Finding, Level};

/// The version of the JSON object: raised when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// How long directories and file systems may take to answer.
const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// How long the database may take to be read whole: as large as it may be, from a slow disk.
const DATABASE_PATIENCE: Duration = Duration::from_secs(600);

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

/// A look at a disk, which may hang: then its thread is left to it.
fn within(patience: Duration, check: &'static str, look: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Vec<Finding> {
    patience::within(patience, look).unwrap_or_else(|| {
        let what = format!("the disk does not answer within {} s", patience.as_secs());
        vec![Finding::broken(check, what, "look at the disk and its mount (dmesg)")]
    })
}

/// What is found, and whether the configuration could be used, without which nothing else can be looked at.
fn examine(arguments: &DoctorArgs, sources: &Sources) -> (Vec<Finding>, bool) {
    let mut findings = Vec::new();
    let mut usable = true;
    match config::load_to_call(sources) {
        Ok(loaded) => {
            // The secret has a look of its own, which also knows the credential of the running unit.
            let (told, daemon_has_url) = daemon::examine(&loaded.settings);
            let is_known_elsewhere = daemon_has_url && loaded.settings.manager_api.url.is_none();
            let warnings = loaded.warnings.iter().filter(|problem| {
                problem.key != "manager_api.secret_file" && !(is_known_elsewhere && problem.key == "manager_api.url")
            });
            findings.extend(warnings.map(|problem| Finding::of_problem(Level::Advice, problem)));
            findings.push(match &loaded.file {
                Some(file) => Finding::sound("config", format!("{} can be used", file.display())),
                None => Finding::sound("config", "there is no file: the defaults are used".to_owned()),
            });
            let settings = Arc::new(loaded.settings);
            let user = DaemonsUser::find(&settings);
            let seen = Arc::clone(&settings);
            findings.extend(within(DISK_PATIENCE, "store", move || local::directories(&seen, user)));
            let seen = Arc::clone(&settings);
            findings.extend(within(DATABASE_PATIENCE, "database", move || store::examine(&seen.store)));
            let seen = Arc::clone(&settings);
            findings.extend(within(DISK_PATIENCE, "disk", move || vec![local::disk(&seen.store)]));
            let counted = findings.iter().any(|finding| finding.check == "rejected");
            let daemon_runs = told.iter().any(|finding| finding.check == "status" && finding.level != Level::Broken);
            // The store's own word is newer than the daemon's.
            findings.extend(told.into_iter().filter(|finding| !counted || finding.check != "rejected"));
            let view = server::View { mac: arguments.mac, daemon_runs, daemon_has_url, user };
            findings.extend(server::examine(&settings.manager_api, &view));
        }
        Err(error) => {
            usable = false;
            findings.extend(error.problems.iter().map(|problem| Finding::of_problem(Level::Broken, problem)));
            findings.extend(error.warnings.iter().map(|problem| Finding::of_problem(Level::Advice, problem)));
        }
    }
    (findings, usable)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_disk_that_hangs_is_a_finding_and_holds_up_nothing_else() {
        let (_never, answer) = mpsc::channel::<()>();
        let look = move || {
            let _ = answer.recv();
            vec![Finding::sound("disk", "late".to_owned())]
        };
        let found = within(Duration::from_millis(1), "disk", look);
        assert_eq!((found.len(), found[0].level), (1, Level::Broken));
        assert!(found[0].what.contains("does not answer"));
    }
}
