//! What stands at the place that an output is to go to, and whether it may be trusted.
//!
//! Promises: a symbolic link, or a named pipe, that neither this user nor root made is never followed or written to: where
//! others may write, it could lead an export of root's over any file. The kernel keeps links in directories like `/tmp` so
//! (`fs.protected_symlinks`); this holds in every directory, for the last part of the path.
//! Refuses: what is neither a file nor a stream.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::geteuid;

/// As many links as the kernel follows.
const LINKS: usize = 40;

/// What an output goes to.
pub(super) enum Place {
    /// A pipe, a device or a descriptor of this process: there is nothing to replace.
    Stream(File),
    /// A file, there or not: its name, which is no link.
    File(PathBuf),
}

impl Place {
    /// Finds what stands at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut place = path.to_path_buf();
        for _ in 0..LINKS {
            let metadata = match place.symlink_metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::File(place)),
                Err(error) => return Err(error),
            };
            let kind = metadata.file_type();
            if kind.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            } else if kind.is_file() {
                return Ok(Self::File(place));
            } else if kind.is_symlink() && is_descriptor(&place) {
                // Whoever started this process opened it: /dev/stdout, /dev/fd/63. A file gets the output at its end.
                return OpenOptions::new().append(true).open(&place).map(Self::Stream);
            } else if kind.is_symlink() {
                trust(&metadata, "symbolic link", &place)?;
                let target = place.read_link()?;
                place.pop();
                place.push(target);
            } else if is_stream(&metadata) {
                // First of all: a pipe without a reader is waited for.
                trust_pipe(&metadata, &place)?;
                // It may be another thing by now.
                let file = OpenOptions::new().write(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&place)?;
                let opened = file.metadata()?;
                if !is_stream(&opened) {
                    return Err(io::Error::other("it was replaced meanwhile (run this again)"));
                }
                trust_pipe(&opened, &place)?;
                return Ok(Self::Stream(file));
            } else {
                return Err(io::Error::other("it is neither a file nor a stream (name another place)"));
            }
        }
        Err(nix::errno::Errno::ELOOP.into())
    }
}

fn is_stream(metadata: &Metadata) -> bool {
    let kind = metadata.file_type();
    kind.is_fifo() || kind.is_char_device()
}

/// Whether it is a name that the kernel gives to an open file.
fn is_descriptor(place: &Path) -> bool {
    let directory = place.parent().and_then(|parent| parent.canonicalize().ok());
    directory.is_some_and(|directory| directory.starts_with("/proc") && directory.ends_with("fd"))
}

/// Devices are root's to make.
fn trust_pipe(metadata: &Metadata, place: &Path) -> io::Result<()> {
    if metadata.file_type().is_fifo() { trust(metadata, "named pipe", place) } else { Ok(()) }
}

fn trust(metadata: &Metadata, what: &str, place: &Path) -> io::Result<()> {
    let (owner, own) = (metadata.uid(), geteuid().as_raw());
    if [own, 0].contains(&owner) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "the {what} {} belongs to user {owner}, neither to root nor to the user who runs this ({own}): it is not followed (delete \
         it, or name a file in a directory of your own)",
        place.display()
    )))
}
