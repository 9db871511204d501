//! The Manager API: reachable, the right path, the right secret, the time unit, the clock, a device.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::daemons_user::DaemonsUser;
use super::finding::{Finding, Level};
use super::{DISK_PATIENCE, within};
use crate::config::{ManagerApiSettings, SecretError, SecretSource};
use crate::manager_api::{AgentLookup, FILES_DO_NOT_ANSWER, ManagerApi, ServerLook, ServerProfile, Verdict};
use crate::patience;
use crate::protocol::MacAddress;

/// A difference that shows in transcripts.
const SKEW_NOTICED: Duration = Duration::from_secs(60);

/// A difference at which the daemon no longer believes the times of events.
const SKEW_BROKEN: Duration = Duration::from_secs(24 * 3600);

/// The unit's credential while the service runs, which only systemd hands to the daemon itself.
const CREDENTIAL_OF_THE_UNIT: &str = "/run/credentials/chat-historyd.service/manager-api-secret";

/// Who looks, and at what.
pub(super) struct View {
    /// Asked for, too.
    pub(super) mac: Option<MacAddress>,
    /// A daemon answers: what its unit hands to it can be seen.
    pub(super) daemon_runs: bool,
    /// It has a Manager API, be it from settings that we do not see.
    pub(super) daemon_has_url: bool,
    /// The daemon's user, where that is another one than ours and we may see what it sees.
    pub(super) user: Option<DaemonsUser>,
}

pub(super) fn examine(settings: &ManagerApiSettings, view: &View) -> Vec<Finding> {
    let mut findings = examine_server(settings, view);
    if let Some(mac) = view.mac.filter(|_| findings.iter().all(|finding| finding.check != "device")) {
        let what = format!("whether {mac} is registered cannot be told: the Manager API could not be asked");
        findings.push(Finding::advice("device", what, "mend the finding \"reachable\" first"));
    }
    findings
}

fn examine_server(settings: &ManagerApiSettings, view: &View) -> Vec<Finding> {
    if settings.url.is_none() && view.daemon_has_url {
        let what =
            "the running daemon has a manager_api.url, this configuration has none: the server is not looked at".to_owned();
        let mend = "run doctor with the daemon's file (--config) and its environment (CHAT_HISTORYD__MANAGER_API__URL)";
        return vec![Finding::advice("reachable", what, mend)];
    }
    if settings.url.is_none() {
        let what = "no manager_api.url is set: history is only kept here".to_owned();
        return vec![Finding::advice(
            "reachable",
            what,
            "set it, with the context path (/toy or /xiaozhi), and reload the daemon",
        )];
    }
    let mut settings = settings.clone();
    let credential = Path::new(CREDENTIAL_OF_THE_UNIT);
    if settings.secret.is_none() && credential.exists() {
        settings.secret = Some(SecretSource::Credential(credential.to_owned()));
    }
    let mut findings: Vec<Finding> = match &settings.secret {
        Some(source) => {
            let (source, user) = (source.clone(), view.user);
            within(DISK_PATIENCE, "secret", move || secret(&source, user).into_iter().collect())
        }
        None => vec![no_secret(fs::metadata(credential).err().map(|error| error.kind()), view.daemon_runs)],
    };
    let for_api = settings.clone();
    let opened = patience::within(DISK_PATIENCE, move || ManagerApi::new(&for_api).map_err(|error| error.to_string()))
        .unwrap_or_else(|| Err(FILES_DO_NOT_ANSWER.to_owned()));
    let api = match opened.and_then(|api| api.unusable().map_or(Ok(api), Err)) {
        Ok(api) => api,
        Err(reason) => {
            findings.push(Finding::broken("reachable", reason, "mend the setting it names"));
            return findings;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            findings.push(Finding::broken("reachable", format!("doctor cannot use the network: {error}"), "try it again"));
            return findings;
        }
    };
    runtime.block_on(ask(&settings, &api, view.mac, &mut findings));
    findings
}

/// No setting names a secret, and the unit's credential cannot be used from here, for this reason.
fn no_secret(unseen: Option<ErrorKind>, daemon_runs: bool) -> Finding {
    let what = "no setting names a server secret, and whether the unit has one cannot be seen from here".to_owned();
    if unseen != Some(ErrorKind::NotFound) {
        return Finding::advice("secret", what, "run doctor as root");
    }
    if !daemon_runs {
        // systemd shows credentials while their service runs.
        let mend = "start the unit and run doctor again; without a unit set manager_api.secret_file";
        return Finding::advice("secret", what, mend);
    }
    let mend = "set manager_api.secret_file, or put it into the credential manager-api-secret of the unit";
    Finding::broken("secret", "there is no server secret".to_owned(), mend)
}

/// What is wrong with the secret on this side.
fn secret(source: &SecretSource, user: Option<DaemonsUser>) -> Option<Finding> {
    match source.read() {
        Err(SecretError::Unreadable { path, source }) if source.kind() == ErrorKind::PermissionDenied => {
            let what = format!("this user may not read the secret in {}", path.display());
            return Some(Finding::advice("secret", what, "run doctor as root or as the daemon's user"));
        }
        Err(error) => return Some(Finding::broken("secret", error.to_string(), error.hint())),
        Ok(_) => {}
    }
    if let SecretSource::File(path) = source
        && let Some(finding) = user.and_then(|user| user.cannot_read("secret", path))
    {
        return Some(finding);
    }
    source.is_exposed().then(|| {
        let path = source.path().map(|path| path.display().to_string()).unwrap_or_default();
        Finding::advice("secret", format!("others may read {path}"), "chmod 600 it")
    })
}

async fn ask(settings: &ManagerApiSettings, api: &ManagerApi, mac: Option<MacAddress>, findings: &mut Vec<Finding>) {
    let url = settings.url.as_deref().unwrap_or_default();
    let look = match api.look().await {
        Ok(look) => look,
        Err(reason) => {
            let mend = "check host and port of manager_api.url, name resolution, the network, manager_api.proxy and ca_file";
            findings.push(Finding::broken("reachable", format!("{url} does not answer: {reason}"), mend));
            return;
        }
    };
    findings.push(Finding::sound("reachable", format!("{url} answers")));
    if settings.secret.as_ref().is_some_and(|source| source.read().is_ok()) {
        findings.extend(door(&look, &api.probe().await));
    }
    let wrong_path = findings.iter().any(|finding| finding.check == "path" && finding.level == Level::Broken);
    findings.push(if wrong_path { unknown_version() } else { version(settings, &look) });
    findings.extend(look.date.map(|date| clock(date, SystemTime::now())));
    if let Some(mac) = mac {
        findings.push(device(mac, api.agent_id(mac).await));
    }
}

/// Path and secret, from what an empty report is answered with.
fn door(look: &ServerLook, probe: &Verdict) -> Vec<Finding> {
    // Only the API itself names its version: then the path is right, whatever it thinks of the secret.
    let path_is_right = look.version.is_some();
    let path = || Finding::sound("path", "the context path of manager_api.url is right".to_owned());
    match probe {
        probe if probe.proves_open() => {
            vec![path(), Finding::sound("secret", "the server takes the secret".to_owned())]
        }
        Verdict::Operator { reason } if path_is_right => {
            let mend = "put the API's system parameter server.secret where the daemon reads it, then reload the daemon \
                        (a systemd credential needs a restart)";
            vec![path(), Finding::broken("secret", reason.clone(), mend)]
        }
        Verdict::Operator { reason } => {
            let mend = "give manager_api.url its context path (/toy or /xiaozhi) and no more, and check what stands before the \
                        server; if the path is right, the secret is wrong";
            vec![Finding::broken("path", reason.clone(), mend)]
        }
        other => {
            let mend = "look at the server's log; the daemon goes on by itself when the server is well";
            vec![Finding::broken("answers", format!("the server is in trouble: {}", other.text()), mend)]
        }
    }
}

/// Whatever answers at a wrong path says nothing of the server.
fn unknown_version() -> Finding {
    let what = "the server's version cannot be told while the path is wrong".to_owned();
    Finding::advice("time_unit", what, "mend the path first")
}

fn version(settings: &ManagerApiSettings, look: &ServerLook) -> Finding {
    let fixed = ServerProfile::fixed(settings);
    match (&look.profile, fixed) {
        (Ok(found), Some(fixed)) if found.unit != fixed.unit => {
            let what =
                format!("the server wants {} and manager_api.report_time_unit says {}", found.unit.as_str(), fixed.unit.as_str());
            Finding::broken("time_unit", what, "set manager_api.report_time_unit = \"auto\"")
        }
        (Ok(found), _) => {
            let version = look.version.as_deref().unwrap_or("before 0.9.3, for it does not say");
            Finding::sound("time_unit", format!("the server's version is {version}: times in {}", found.unit.as_str()))
        }
        (Err(unknown), Some(fixed)) => {
            let what = format!("{unknown}; it is sent {} as configured", fixed.unit.as_str());
            Finding::advice("time_unit", what, "make sure that manager_api.report_time_unit fits the server's version")
        }
        (Err(unknown), None) => {
            let mend = "nothing is sent until the server says its version clearly, or manager_api.report_time_unit is set";
            Finding::broken("time_unit", unknown.to_string(), mend)
        }
    }
}

fn clock(server: SystemTime, here: SystemTime) -> Finding {
    let (skew, side) = match here.duration_since(server) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let what = format!("this clock is {} s {side} the server's", skew.as_secs());
    let mend = "set the clock (timedatectl set-ntp true)";
    if skew >= SKEW_BROKEN {
        Finding::broken("clock", what, mend)
    } else if skew >= SKEW_NOTICED {
        Finding::advice("clock", what, mend)
    } else {
        Finding::sound("clock", "this clock and the server's agree".to_owned())
    }
}

fn device(mac: MacAddress, lookup: AgentLookup) -> Finding {
    match lookup {
        AgentLookup::Found(agent) => Finding::sound("device", format!("{mac} is registered with agent {agent}")),
        AgentLookup::None => {
            let mend = "register the device and give it an agent: until then its messages wait";
            Finding::broken("device", format!("the server knows no agent of {mac}"), mend)
        }
        AgentLookup::NoEndpoint => {
            let mend = "look it up in the server's own console";
            Finding::advice("device", format!("this server does not tell whether {mac} is registered"), mend)
        }
        AgentLookup::Failed { reason } => Finding::advice(
            "device",
            format!("whether {mac} is registered cannot be told: {reason}"),
            "mend what is broken above, or look at the server's log and try again",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_judged_by_its_distance_in_both_directions() {
        let now = SystemTime::now();
        for (seconds, level) in [(0, Level::Sound), (59, Level::Sound), (61, Level::Advice), (90_000, Level::Broken)] {
            let skew = Duration::from_secs(seconds);
            assert_eq!(clock(now + skew, now).level, level, "{seconds} s behind");
            assert_eq!(clock(now - skew, now).level, level, "{seconds} s ahead");
        }
    }

    #[test]
    fn a_secret_out_of_sight_is_not_said_to_be_missing() {
        let unit_hides_it = no_secret(Some(ErrorKind::PermissionDenied), true);
        assert_eq!((unit_hides_it.level, unit_hides_it.mend.as_str()), (Level::Advice, "run doctor as root"));
        let unit_is_stopped = no_secret(Some(ErrorKind::NotFound), false);
        assert!(unit_is_stopped.level == Level::Advice && unit_is_stopped.mend.starts_with("start the unit"));
        assert_eq!(no_secret(Some(ErrorKind::NotFound), true).level, Level::Broken);
    }
}
