//! The real, unmodified binary, as a value: started ready, observed through its sockets, gone when dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::agent::Agent;
use super::eventually::{SOON, eventually};
use super::manager_api::{ManagerApi, SECRET};
use super::{canary, disk, guard};

/// The binary under test: this build's, or the one `CHAT_HISTORYD_BINARY` names (a release build, a package).
pub fn binary() -> PathBuf {
    let named = std::env::var_os("CHAT_HISTORYD_BINARY").map(|path| std::path::absolute(path).expect("a path"));
    // Daemons start in directories of their own.
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_chat-historyd").into())
}

/// How a daemon is started.
pub struct Builder {
    settings: BTreeMap<String, String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    directory: Option<PathBuf>,
}

/// A daemon and its private directory.
pub struct Daemon {
    directory: PathBuf,
    _owned: Option<tempfile::TempDir>,
    settings: BTreeMap<String, String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    child: Option<Child>,
    log: Arc<Mutex<Vec<u8>>>,
    /// Reads the log of the process that was started last, to its end.
    reading: Option<JoinHandle<()>>,
}

impl Builder {
    /// Sets a key (`section.key`) to a TOML value: `.set("session.batch_size", "1")`, `.set("log.level", "'debug'")`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Leaves a key out that is set by default here.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    /// Delivers to this stand-in.
    #[must_use]
    pub fn api(self, api: &ManagerApi) -> Self {
        let url = format!("'{}'", api.url());
        self.set("manager_api.url", &url)
    }

    /// One more command line argument.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// One variable of the otherwise empty environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Several of them.
    #[must_use]
    pub fn environments(mut self, pairs: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(pairs);
        self
    }

    /// Starts the binary through another program (`strace -D …`, `faketime …`), which must become it by `exec`.
    #[must_use]
    pub fn wrapper(mut self, words: &[impl AsRef<str>]) -> Self {
        self.wrapper.extend(words.iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Uses this directory (kept afterwards) instead of a temporary one.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut daemon = self.prepare();
        daemon.start();
        daemon
    }

    /// Directory and configuration only.
    pub fn prepare(mut self) -> Daemon {
        let owned = self
            .directory
            .is_none()
            .then(|| tempfile::Builder::new().prefix("chat-historyd-test-").tempdir().expect("a temporary directory"));
        let directory = self.directory.unwrap_or_else(|| owned.as_ref().expect("made above").path().to_owned());
        fs::create_dir_all(directory.join("run")).expect("a directory");
        for (key, name) in [
            ("socket.path", "run/events.sock"),
            ("status.socket", "run/status.sock"),
            ("store.directory", "store"),
            ("backup.directory", "backup"),
        ] {
            self.settings.entry(key.to_owned()).or_insert_with(|| format!("'{}'", directory.join(name).display()));
        }
        let secret = directory.join("secret");
        if self.settings.contains_key("manager_api.url") && !self.settings.contains_key("manager_api.secret") {
            self.settings.entry("manager_api.secret_file".to_owned()).or_insert_with(|| {
                fs::write(&secret, SECRET).expect("a secret file");
                fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
                format!("'{}'", secret.display())
            });
        }
        Daemon {
            directory,
            _owned: owned,
            settings: self.settings,
            arguments: self.arguments,
            environment: self.environment,
            wrapper: self.wrapper,
            child: None,
            log: Arc::default(),
            reading: None,
        }
    }
}

impl Daemon {
    /// A daemon with the defaults of the product, but for what tests would otherwise wait for.
    pub fn builder() -> Builder {
        let settings = [
            ("session.send_interval", "'200ms'"),
            ("upload.backoff_initial", "'50ms'"),
            ("upload.backoff_max", "'500ms'"),
            ("upload.unknown_device_retry", "'1s'"),
            ("manager_api.timeout", "'5s'"),
            ("log.level", "'trace'"),
            ("log.format", "'text'"),
        ];
        Builder {
            settings: settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            directory: None,
        }
    }

    /// A daemon that delivers to this stand-in.
    #[track_caller]
    pub fn start_for(api: &ManagerApi) -> Self {
        Self::builder().api(api).start()
    }

    // ---- life ----------------------------------------------------------------------------------------------------

    /// Starts it (again), on the same directory, and waits until it answers a `ping`.
    #[track_caller]
    pub fn start(&mut self) {
        self.spawn();
        eventually(SOON, "the daemon answers on its socket", || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("its state")) {
                panic!("the daemon ended instead of starting: {status}\n{}", self.log());
            }
            Agent::dial(&self.socket()).is_some_and(|mut agent| agent.is_answered()).then_some(())
        });
    }

    /// Starts it without waiting.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "already running");
        self.write_config();
        let mut words = self.wrapper.clone();
        words.push(binary().display().to_string());
        words.extend(["--config".to_owned(), self.config().display().to_string()]);
        words.extend(self.arguments.iter().cloned());
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.directory)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", words[0]));
        guard::kill_at_end(child.id());
        let mut stderr = child.stderr.take().expect("piped");
        let log = Arc::clone(&self.log);
        self.reading = Some(std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            while let Ok(count @ 1..) = stderr.read(&mut chunk) {
                log.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..count]);
            }
        }));
        self.child = Some(child);
    }

    /// `kill -9`, and waits for the end.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().expect("it was ours");
            guard::forget(child.id());
        }
    }

    /// Sends a signal by name: `TERM`, `HUP`, `INT`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().expect("kill runs");
        assert!(status.success(), "kill -s {name}");
    }

    /// Sends a signal to a daemon that may be gone by now.
    pub fn try_signal(&self, name: &str) {
        let _ = Command::new("kill").args(["-s", name, &self.pid().to_string()]).stderr(Stdio::null()).status();
    }

    /// SIGHUP.
    pub fn hup(&self) {
        self.signal("HUP");
    }

    /// SIGTERM, and its exit status within this time.
    #[track_caller]
    pub fn term(&mut self, deadline: Duration) -> ExitStatus {
        self.signal("TERM");
        self.wait(deadline)
    }

    /// Its exit status, when it ends within this time.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        let status = eventually(deadline, "the daemon ended", || child.try_wait().expect("its state"));
        guard::forget(child.id());
        // Its last words may still be in the pipe.
        if let Some(reading) = self.reading.take() {
            eventually(deadline, "its log is read to the end", || reading.is_finished().then_some(()));
        }
        status
    }

    /// SIGTERM, then a new start on the same directory.
    #[track_caller]
    pub fn restart(&mut self) {
        let status = self.term(SOON);
        assert!(status.success(), "the daemon ended with {status}\n{}", self.log());
        self.start();
    }

    /// Whether the process lives.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("its state").is_none())
    }

    // ---- places --------------------------------------------------------------------------------------------------

    /// Its private directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("chat-historyd.toml")
    }

    /// The producers' socket.
    pub fn socket(&self) -> PathBuf {
        self.path_of("socket.path")
    }

    /// The directory of the store.
    pub fn store(&self) -> PathBuf {
        self.path_of("store.directory")
    }

    /// The directory of the backups.
    pub fn backups(&self) -> PathBuf {
        self.path_of("backup.directory")
    }

    /// The file the secret is read from.
    pub fn secret_file(&self) -> PathBuf {
        self.path_of("manager_api.secret_file")
    }

    fn path_of(&self, key: &str) -> PathBuf {
        self.settings.get(key).unwrap_or_else(|| panic!("{key} is not set")).trim_matches('\'').into()
    }

    /// Changes a setting in the file: for the next start or SIGHUP.
    pub fn set(&mut self, key: &str, value: &str) {
        self.settings.insert(key.to_owned(), value.to_owned());
        self.write_config();
    }

    /// One variable of its environment, from the next start on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// An empty environment again, from the next start on.
    pub fn clear_environment(&mut self) {
        self.environment.clear();
    }

    /// Starts it through another program from the next start on; none with an empty list.
    pub fn set_wrapper(&mut self, words: &[String]) {
        self.wrapper = words.to_vec();
    }

    /// Takes a setting out of the file: for the next start or SIGHUP.
    pub fn unset(&mut self, key: &str) {
        self.settings.remove(key);
        self.write_config();
    }

    fn write_config(&self) {
        let mut sections: BTreeMap<&str, String> = BTreeMap::new();
        for (key, value) in &self.settings {
            let (section, name) = key.split_once('.').expect("section.key");
            let text = sections.entry(section).or_insert_with(|| format!("[{section}]\n"));
            text.push_str(&format!("{name} = {value}\n"));
        }
        fs::write(self.config(), sections.into_values().collect::<String>()).expect("a configuration file");
        fs::set_permissions(self.config(), fs::Permissions::from_mode(0o600)).expect("chmod");
    }

    // ---- observation ---------------------------------------------------------------------------------------------

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// What the status socket says; `None` while it does not answer with JSON.
    pub fn try_status(&self) -> Option<Value> {
        let mut stream = UnixStream::connect(self.path_of("status.socket")).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// What the status socket says.
    #[track_caller]
    pub fn status(&self) -> Value {
        eventually(SOON, "the status socket answers", || self.try_status())
    }

    /// A number of `status.metrics`; for a family, the sum over its labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        metric(&self.status(), name)
    }

    /// One label of a family in `status.metrics`.
    #[track_caller]
    pub fn labelled(&self, name: &str, label: &str) -> u64 {
        self.status()["metrics"][name][label].as_u64().unwrap_or_else(|| panic!("no metric {name}{{{label}}} in the status"))
    }

    /// Open file descriptors.
    pub fn fd_count(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("its descriptors").count()
    }

    /// What its threads are doing, as the kernel's letters: `R`unning, `S`leeping, `D`isk, s`T`opped.
    pub fn thread_states(&self) -> Vec<char> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads").flatten();
        let state = |stat: String| stat.rsplit(") ").next().and_then(|fields| fields.chars().next());
        tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok()).filter_map(state).collect()
    }

    /// How often a thread of this name has gone to sleep.
    pub fn sleeps_of(&self, thread: &str) -> u64 {
        let mut tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads").flatten();
        let of = |task: PathBuf| {
            let name = fs::read_to_string(task.join("comm")).ok().filter(|name| name.trim() == thread);
            name.and_then(|_| fs::read_to_string(task.join("status")).ok())
        };
        let status = tasks.find_map(|task| of(task.path())).expect("a thread of this name");
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.and_then(|count| count.trim().parse().ok()).expect("a number")
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
        kilobytes * 1024
    }

    /// Processor time used so far.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("its statistics");
        // Behind the name, which may hold anything: user and system time are the 12th and 13th field, in ticks of 10 ms.
        let fields = stat.rsplit(") ").next().expect("fields");
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Standard error so far, over all starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The path of something as seen from inside the daemon's own mounts.
    pub fn inside(&self, path: &Path) -> PathBuf {
        disk::inside(self.pid(), path)
    }
}

/// A number of a status; for a family, the sum over its labels.
#[track_caller]
pub fn metric(status: &Value, name: &str) -> u64 {
    match &status["metrics"][name] {
        Value::Number(number) => number.as_u64().expect("a counter"),
        Value::Object(labels) => labels.values().filter_map(Value::as_u64).sum(),
        _ => panic!("no metric {name} in the status: {status}"),
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let mut from = log.len().saturating_sub(20_000);
            while !log.is_char_boundary(from) {
                from += 1;
            }
            eprintln!("---- the daemon's log (its end) ----\n{}", &log[from..]);
            return;
        }
        // Its last lines may still be in the pipe; a tracer that outlives it may hold the pipe open for long.
        let end = std::time::Instant::now() + Duration::from_secs(2);
        while self.reading.as_ref().is_some_and(|reading| !reading.is_finished()) && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        let found = canary::found_in(&self.log(), &self.socket());
        assert_eq!(found, None, "secret or content in the daemon's log");
    }
}
