//! The surroundings a process is started in, as a value: tests build one, only [`Environment::of_process`] looks at
//! the real one. The defaults that depend on it (where the socket, the store and the credential are) are decided here.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The name of everything that is ours in a shared directory.
const NAME: &str = "chat-historyd";

/// Environment variables, user and the user's directories.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// All environment variables.
    pub variables: BTreeMap<OsString, OsString>,
    /// The effective user id; 0 is root.
    pub uid: u32,
    /// Where a file for the whole machine is looked for: `/etc/chat-historyd`.
    pub system_config: PathBuf,
    /// Where the service of the whole machine has its sockets: `/run/chat-historyd`.
    pub system_runtime: PathBuf,
    /// The user's configuration directory (`$XDG_CONFIG_HOME`, else `~/.config`).
    pub config_home: Option<PathBuf>,
    /// The user's state directory (`$XDG_STATE_HOME`, else `~/.local/state`).
    pub state_home: Option<PathBuf>,
    /// The user's runtime directory (`$XDG_RUNTIME_DIR`).
    pub runtime_home: Option<PathBuf>,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the variables: one of them may be the secret.
        f.debug_struct("Environment").field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl Environment {
    /// What this process was started with.
    #[must_use]
    pub fn of_process() -> Self {
        let base = directories::BaseDirs::new();
        let base = base.as_ref();
        Self {
            variables: std::env::vars_os().collect(),
            uid: nix::unistd::geteuid().as_raw(),
            system_config: Path::new("/etc").join(NAME),
            system_runtime: Path::new("/run").join(NAME),
            config_home: base.map(|base| base.config_dir().to_owned()),
            state_home: base.and_then(|base| base.state_dir()).map(Path::to_owned),
            runtime_home: base.and_then(|base| base.runtime_dir()).map(Path::to_owned),
        }
    }

    /// A variable, unless it is missing or empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The first absolute directory of a variable that systemd fills with a list separated by colons.
    fn directory(&self, name: &str) -> Option<PathBuf> {
        std::env::split_paths(self.variable(name)?).find(|path| path.is_absolute())
    }

    /// Whether the process runs as root.
    #[must_use]
    pub const fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// The default of `socket.path`: the list that the producers' clients try too.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        let directory = self.directory("RUNTIME_DIRECTORY").unwrap_or_else(|| {
            if self.is_root() {
                Path::new("/run").join(NAME)
            } else if let Some(home) = &self.runtime_home {
                home.join(NAME)
            } else {
                PathBuf::from(format!("/tmp/{NAME}-{}", self.uid))
            }
        });
        directory.join("events.sock")
    }

    /// The default of `store.directory`; none for a user without a home.
    #[must_use]
    pub fn state_directory(&self) -> Option<PathBuf> {
        self.directory("STATE_DIRECTORY").or_else(|| {
            if self.is_root() {
                Some(Path::new("/var/lib").join(NAME))
            } else {
                self.state_home.as_ref().map(|home| home.join(NAME))
            }
        })
    }

    /// Where systemd puts the credential that holds the secret, whether or not it is there.
    #[must_use]
    pub fn credential(&self) -> Option<PathBuf> {
        self.directory("CREDENTIALS_DIRECTORY").map(|directory| directory.join("manager-api-secret"))
    }

    /// Where the configuration file is looked for when none is named, in order.
    #[must_use]
    pub fn config_files(&self) -> Vec<PathBuf> {
        let given = self.variable("CONFIGURATION_DIRECTORY").map(|list| std::env::split_paths(list).collect::<Vec<_>>());
        given
            .into_iter()
            .flatten()
            .chain([self.system_config.clone()])
            .chain(self.config_home.as_ref().map(|home| home.join(NAME)))
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join("chat-historyd.toml"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(uid: u32, variables: &[(&str, &str)]) -> Environment {
        Environment {
            variables: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            uid,
            system_config: "/etc/chat-historyd".into(),
            system_runtime: "/run/chat-historyd".into(),
            config_home: Some("/home/u/.config".into()),
            state_home: Some("/home/u/.local/state".into()),
            runtime_home: Some("/run/user/7".into()),
        }
    }

    #[test]
    fn the_directories_of_systemd_win() {
        let variables = [("RUNTIME_DIRECTORY", "/run/a:/run/b"), ("STATE_DIRECTORY", "/var/lib/private/a")];
        for uid in [0, 7] {
            let environment = environment(uid, &variables);
            assert_eq!(environment.socket_path(), Path::new("/run/a/events.sock"));
            assert_eq!(environment.state_directory().as_deref(), Some(Path::new("/var/lib/private/a")));
        }
    }

    #[test]
    fn root_uses_the_machines_directories_and_a_user_their_own() {
        let root = environment(0, &[]);
        assert_eq!(root.socket_path(), Path::new("/run/chat-historyd/events.sock"));
        assert_eq!(root.state_directory().as_deref(), Some(Path::new("/var/lib/chat-historyd")));
        let user = environment(7, &[]);
        assert_eq!(user.socket_path(), Path::new("/run/user/7/chat-historyd/events.sock"));
        assert_eq!(user.state_directory().as_deref(), Some(Path::new("/home/u/.local/state/chat-historyd")));
    }

    #[test]
    fn a_user_without_directories_gets_a_socket_but_no_place_for_the_store() {
        let bare = Environment { uid: 7, ..Environment::default() };
        assert_eq!(bare.socket_path(), Path::new("/tmp/chat-historyd-7/events.sock"));
        assert_eq!(bare.state_directory(), None);
        assert_eq!(bare.credential(), None);
    }

    #[test]
    fn files_are_looked_for_in_the_order_systemd_machine_user() {
        let environment = environment(7, &[("CONFIGURATION_DIRECTORY", "/etc/one:/etc/two")]);
        let expected = [
            "/etc/one/chat-historyd.toml",
            "/etc/two/chat-historyd.toml",
            "/etc/chat-historyd/chat-historyd.toml",
            "/home/u/.config/chat-historyd/chat-historyd.toml",
        ];
        assert_eq!(environment.config_files(), expected.map(PathBuf::from));
    }

    #[test]
    fn an_empty_or_relative_directory_is_as_good_as_none() {
        let environment = environment(0, &[("STATE_DIRECTORY", ""), ("RUNTIME_DIRECTORY", "here")]);
        assert_eq!(environment.socket_path(), Path::new("/run/chat-historyd/events.sock"));
        assert_eq!(environment.state_directory().as_deref(), Some(Path::new("/var/lib/chat-historyd")));
    }
}
