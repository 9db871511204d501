//! Root changes a history while no daemon runs: what it makes is the daemon's user's, or the daemon could not start again.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use crate::support::eventually::SOON;
use crate::support::history::{CONVERSATION, MAC, bytes_are_in, converse, refusal, run, text};
use crate::support::{Daemon, skipped, soon};

/// The daemon's user.
const OWNER: u32 = 65534;

fn tree(path: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(path).into_iter().flatten().flatten().flat_map(|entry| tree(&entry.path()));
    std::iter::once(path.to_path_buf()).chain(below).collect()
}

fn give(path: &Path, user: u32) {
    for path in tree(path) {
        lchown(path, Some(user), Some(user)).unwrap();
    }
}

#[track_caller]
fn all_is_the_owners(path: &Path) {
    for path in tree(path) {
        let found = path.symlink_metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (OWNER, OWNER), "{}", path.display());
    }
}

/// A daemon of another user's that is not there any more, and the export of what was said to it; `None`, loudly, where
/// that cannot be.
fn ended() -> Option<(Daemon, PathBuf)> {
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can be somebody else");
        return None;
    }
    let mut daemon = Daemon::builder().start();
    converse(&daemon, MAC, "s");
    soon("it is backed up", || bytes_are_in(&daemon.backups(), CONVERSATION[0].1));
    soon("it is indexed", || bytes_are_in(&daemon.store(), "say hi b bold b stars"));
    // Where only root may look.
    let roots = daemon.directory().join("roots");
    fs::create_dir(&roots).unwrap();
    fs::set_permissions(&roots, Permissions::from_mode(0o700)).unwrap();
    let export = roots.join("export.jsonl");
    text(&daemon, &["history", "export", "--format", "jsonl", "-o", export.to_str().unwrap()]);
    assert!(daemon.term(SOON).success());
    give(&daemon.store(), OWNER);
    give(&daemon.backups(), OWNER);
    fs::set_permissions(daemon.directory(), Permissions::from_mode(0o755)).unwrap();
    Some((daemon, export))
}

#[test]
fn what_root_makes_in_the_store_is_the_daemons() {
    let Some((mut daemon, export)) = ended() else { return };
    let store = daemon.store();
    let import = ["history", "import", export.to_str().unwrap()];
    let database = store.join("history.db");
    fs::write(&database, "no database at all, but longer than the header of one: ".repeat(9)).unwrap();
    assert!(text(&daemon, &import).contains("imported"));
    assert!(store.join("corrupt").exists(), "it was salvaged");
    all_is_the_owners(&store);

    for path in tree(&store).iter().rev().filter(|path| **path != store) {
        if path.is_dir() { fs::remove_dir(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    assert!(text(&daemon, &import).contains("imported 8 messages"));
    assert!(database.exists());
    all_is_the_owners(&store);
    for words in [["rejected", "retry", "--all"].as_slice(), &["history", "list"], &["history", "search", "elephant"]] {
        text(&daemon, words);
        all_is_the_owners(&store);
    }

    // Whether everything is gone is for root to see, who sees more.
    let copy = store.join("copy");
    fs::copy(&database, &copy).unwrap();
    let forget = ["history", "forget", "--mac", MAC, "--yes", "--including-undelivered"];
    let output = run(&daemon, &forget);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(70), "{said}");
    assert!(said.contains("/store/copy (it is no file of the daemon's)"), "{said}");
    assert!(!bytes_are_in(&daemon.backups(), CONVERSATION[0].1));
    fs::remove_file(&copy).unwrap();
    all_is_the_owners(&store);
    daemon.start();
    assert_eq!(text(&daemon, &["history", "list"]).lines().count(), 1);
}

#[test]
fn a_file_that_is_roots_already_is_named_with_the_remedy() {
    let Some((daemon, export)) = ended() else { return };
    let database = daemon.store().join("history.db");
    lchown(&database, Some(0), Some(0)).unwrap();
    let said = refusal(&daemon, &["history", "import", export.to_str().unwrap()], 73);
    let remedy = format!("({} belongs to user 0, this is user {OWNER}: chown -R", database.display());
    assert!(said.contains(&remedy), "{said}");
}

/// As in a container whose daemon is root, on a volume of somebody else's.
#[test]
fn a_store_of_roots_in_the_directory_of_another_user_stays_roots() {
    let Some((daemon, export)) = ended() else { return };
    for name in ["history.db", "lock"] {
        lchown(daemon.store().join(name), Some(0), Some(0)).unwrap();
    }
    assert!(text(&daemon, &["history", "import", export.to_str().unwrap()]).contains("imported"));
    let owner = fs::metadata(daemon.store().join("history.db")).unwrap().uid();
    assert_eq!(owner, 0);
}

#[test]
fn a_store_that_its_owner_cannot_reach_is_left_to_its_owner() {
    let Some((daemon, export)) = ended() else { return };
    fs::set_permissions(daemon.directory(), Permissions::from_mode(0o700)).unwrap();
    let said = refusal(&daemon, &["history", "import", export.to_str().unwrap()], 69);
    assert!(said.contains("who cannot reach it") && said.contains("run this where the daemon runs"), "{said}");
    all_is_the_owners(&daemon.store());
}
