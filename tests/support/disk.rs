//! Disks and system calls that fail: small file systems in a mount namespace of their own, and strace injection.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::eventually::soon;
use super::guard;

/// The path of something as seen from inside a process's own mounts.
pub fn inside(pid: u32, path: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path))
}

/// What strace does to a call that is to hang: a minute, or until it lets go.
pub const HANGS: &str = "delay_enter=60000000";

/// Words to start a program with so that chosen system calls fail: `inject("fdatasync", "error=EIO:when=3+")`,
/// `inject("fdatasync,pwrite64", "signal=KILL:when=7")`. The program is the direct child (strace is the grandchild).
pub fn inject(calls: &str, what: &str) -> Vec<String> {
    let words = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e"];
    let mut words: Vec<String> = words.map(str::to_owned).into();
    words.extend([format!("trace={calls}"), "-e".to_owned(), format!("inject={calls}:{what}")]);
    words
}

/// Words to start a program with so that chosen system calls of it are written to a file, with the paths of descriptors.
pub fn trace(calls: &str, file: &Path) -> Vec<String> {
    let words = ["strace", "-D", "-f", "-qq", "-y", "-s", "4096", "-o"].map(str::to_owned);
    words.into_iter().chain([file.display().to_string(), "-e".to_owned(), format!("trace={calls}")]).collect()
}

/// Makes system calls of a running process fail or wait, as long as it lives.
pub struct Injection(Child);

impl Injection {
    /// `attach(pid, "pread64", "error=EIO", &[&database])`; without paths, of every file.
    #[track_caller]
    pub fn attach(pid: u32, calls: &str, what: &str, paths: &[&Path]) -> Self {
        let child = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.to_string()])
            .args(paths.iter().flat_map(|path| ["-P".as_ref(), path.as_os_str()]))
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace runs");
        guard::kill_at_end(child.id());
        let traced = || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
            tasks.flatten().all(|task| {
                std::fs::read_to_string(task.path().join("status")).is_ok_and(|status| !status.contains("TracerPid:\t0\n"))
            })
        };
        soon("strace is attached to every thread", traced);
        Self(child)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        guard::forget(self.0.id());
    }
}

/// Whether strace can trace here; says so loudly when not.
pub fn strace_works() -> bool {
    let works = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        super::skipped("strace is missing or may not trace here");
    }
    works
}

/// A file system of a few megabytes in a mount namespace of its own, kept by a sleeping process. The rest of the file
/// system is the host's, so sockets and configuration stay where they are.
pub struct SmallDisk {
    holder: Child,
    directory: tempfile::TempDir,
    in_user_namespace: bool,
}

impl SmallDisk {
    /// Mounts one of this size (tmpfs size syntax: `4m`); `None`, loudly, where namespaces are not allowed.
    pub fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::Builder::new().prefix("chat-historyd-disk-").tempdir().expect("a temporary directory");
        let script = format!(
            "mount -t tmpfs -o size={size},mode=0755 tmpfs '{}' && echo mounted && exec cat >/dev/null",
            directory.path().display()
        );
        for flags in ["-m", "-Urm"] {
            let spawned = Command::new("unshare")
                .args([flags, "sh", "-c", &script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn();
            let Ok(mut holder) = spawned else { continue };
            let mut answer = String::new();
            let stdout = holder.stdout.take().expect("piped");
            let _ = BufReader::new(stdout).lines().next().map(|line| line.map(|line| answer = line));
            if answer == "mounted" {
                guard::kill_at_end(holder.id());
                return Some(Self { holder, directory, in_user_namespace: flags.contains('U') });
            }
            let _ = holder.kill();
            let _ = holder.wait();
        }
        super::skipped("no mount namespace allowed here (needs root or unprivileged user namespaces)");
        None
    }

    /// The mount point, as the daemon sees it.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The mount point, as this process can reach it.
    pub fn outside(&self) -> PathBuf {
        inside(self.holder.id(), self.path())
    }

    /// Words that start a program where the disk is mounted.
    pub fn wrapper(&self) -> Vec<String> {
        let target = self.holder.id().to_string();
        let mut words = vec!["nsenter".to_owned(), "-t".to_owned(), target, "-m".to_owned()];
        if self.in_user_namespace {
            words.extend(["-U".to_owned(), "--preserve-credentials".to_owned()]);
        }
        words.push("--".to_owned());
        words
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let zeros = vec![0_u8; 64 * 1024];
        let mut file = std::fs::File::create(self.outside().join("filler")).expect("a file to fill the disk");
        for size in [zeros.len(), 4096, 1] {
            while std::io::Write::write_all(&mut file, &zeros[..size]).is_ok() {}
        }
    }

    /// Frees what [`Self::fill`] took.
    pub fn free(&self) {
        std::fs::remove_file(self.outside().join("filler")).expect("the filler");
    }

    /// Makes it read-only, or writable again.
    pub fn remount(&self, mode: &str) {
        let words = self.wrapper();
        let path = self.path().display().to_string();
        let status = Command::new(&words[0])
            .args(&words[1..])
            .args(["mount", "-o", &format!("remount,{mode}"), &path])
            .status()
            .expect("nsenter runs");
        assert!(status.success(), "remount,{mode}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        guard::forget(self.holder.id());
    }
}
