//! A disk whose power can be cut: a file system with a journal on a loop device, in a mount namespace of its own.
//!
//! The namespace is kept by a sleeping process; when it and the daemon are gone, the kernel unmounts the file system and
//! frees the loop device by itself, so nothing is left even when the tests are killed.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{disk, guard};

/// Which file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Journaled {
    /// ext4, ordered.
    Ext4,
    /// XFS.
    Xfs,
}

/// The disk. The rest of the file system is the host's, so sockets and configuration stay where they are.
pub struct LoopDisk {
    holder: Child,
    directory: tempfile::TempDir,
}

impl LoopDisk {
    /// Makes and mounts one; `None`, loudly, where that is not allowed.
    pub fn mount(kind: Journaled) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("chat-historyd-loop-").tempdir().expect("a temporary directory");
        let (mebibytes, make) = match kind {
            Journaled::Ext4 => (48, "mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0"),
            Journaled::Xfs => (320, "mkfs.xfs -q"),
        };
        let script = format!(
            "PATH=$PATH:/usr/sbin:/sbin; cd '{}' && mkdir disk && truncate -s {mebibytes}M image && {make} image && \
             mount -o loop image disk && chmod 755 disk && xfs_io -V && echo mounted && exec cat >/dev/null",
            directory.path().display()
        );
        let spawned = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        if let Ok(mut holder) = spawned {
            guard::kill_at_end(holder.id());
            let stdout = BufReader::new(holder.stdout.take().expect("piped"));
            if stdout.lines().map_while(Result::ok).any(|line| line == "mounted") {
                return Some(Self { holder, directory });
            }
            let _ = holder.kill();
            let _ = holder.wait();
            guard::forget(holder.id());
        }
        super::skipped("no power can be cut here (needs root, loop devices, e2fsprogs and xfsprogs)");
        None
    }

    /// The mount point, as the daemon sees it.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// The mount point, as this process can reach it.
    pub fn outside(&self) -> PathBuf {
        disk::inside(self.holder.id(), &self.path())
    }

    /// Words that start a program where the disk is mounted.
    pub fn wrapper(&self) -> Vec<String> {
        let target = self.holder.id().to_string();
        ["nsenter", "-t", &target, "-m", "--"].map(str::to_owned).into()
    }

    fn run(&self, script: &str) {
        let words = self.wrapper();
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(["sh", "-c", &format!("PATH=$PATH:/usr/sbin:/sbin; cd '{}' && {script}", self.directory.path().display())])
            .stdin(Stdio::null())
            .output()
            .expect("nsenter runs");
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Cuts the power: from now on nothing reaches the disk, and what was not synced is gone.
    pub fn cut_power(&self) {
        self.run("xfs_io -x -c shutdown disk");
    }

    /// What a kernel does with a file system it no longer trusts: the journal is given up, everything is read-only.
    pub fn abort(&self) {
        self.run("mount -o remount,abort disk");
    }

    /// The power is back: the journal is replayed. Nobody may use the disk when this is called.
    pub fn power_on(&self) {
        self.run("umount disk && mount -o loop image disk");
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        guard::forget(self.holder.id());
    }
}

/// A directory for a store on this disk.
pub fn store_on(path: &Path) -> String {
    format!("'{}'", path.join("store").display())
}
