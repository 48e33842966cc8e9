//! A disk of a few megabytes, to be filled: what a queen does when hers is full.

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A file system in memory, mounted until it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of that size at a new folder; nothing where the system does not let us.
    ///
    /// # Panics
    /// When it fails for another reason.
    #[must_use]
    pub fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        fs::create_dir(path).expect("the folder is ours");
        let size = format!("size={mebibytes}m");
        let size = std::ffi::CString::new(size).expect("no zero in it");
        match mount("tmpfs", path, "tmpfs", MountFlags::empty(), Some(&*size)) {
            Ok(()) => Some(SmallDisk {
                path: path.to_owned(),
            }),
            Err(Errno::PERM | Errno::ACCESS) => {
                eprintln!("SKIPPED: mounting a small disk needs root (CAP_SYS_ADMIN)");
                None
            }
            Err(e) => panic!("{} can't be mounted: {e}", path.display()),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }

    /// Takes all room that is left.
    ///
    /// # Panics
    /// When it fails otherwise than by the disk being full.
    pub fn fill(&self) {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.ballast());
        let mut file = match file {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::StorageFull => return,
            Err(e) => panic!("the disk is ours: {e}"),
        };
        for piece in [1 << 16, 1 << 12, 1] {
            let piece = vec![0u8; piece];
            let full = loop {
                match file.write_all(&piece) {
                    Ok(()) => {}
                    Err(e) => break e,
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
        }
    }

    /// Gives the room back.
    ///
    /// # Panics
    /// When nothing filled it.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("it was filled");
    }

    /// Lets nobody write any more. Nobody may have a file open for that.
    ///
    /// # Panics
    /// When somebody has.
    pub fn make_read_only(&self) {
        let read_only = MountFlags::RDONLY;
        mount_remount(&self.path, read_only, "").expect("nobody writes");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Whoever still has a file open there keeps it until it ends.
        if let Err(e) = unmount(&self.path, UnmountFlags::DETACH) {
            eprintln!("{} can't be unmounted: {e}", self.path.display());
        }
    }
}
