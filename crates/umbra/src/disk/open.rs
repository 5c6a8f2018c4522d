//! The worker's side: images are opened here, and their files asked for at the broker.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use umbra_block::{
    Access, Disk, Environment, Error, FileSpec, FileStorage, FileStorageSpec, NodeSpec, Opener, Registry,
    Result as BlockResult, Storage,
};

use crate::protocol::{DiskFile, Link, OpenFile, Order};

/// Asks the broker for files of one disk. Nobody else receives from the link meanwhile.
#[derive(Debug)]
struct Asking {
    link: Arc<Link>,
    disk: u32,
    /// Device and number of all files that the machine's disks have opened: nobody can look them up from inside the jail.
    opened: Arc<Mutex<Vec<(u64, u64)>>>,
}

impl Asking {
    fn ask(&self, name: &str, write: bool) -> io::Result<File> {
        let wanted = OpenFile { disk: self.disk, name: name.to_owned(), write };
        self.link.send(&crate::protocol::Message::Open(wanted), &[])?;
        match self.link.receive::<Order>()? {
            Some((Order::File(Ok(())), descriptors)) => {
                let descriptor = descriptors.into_iter().next();
                descriptor.map(File::from).ok_or_else(|| io::Error::other("no descriptor came"))
            }
            Some((Order::File(Err(why)), _)) => Err(io::Error::other(why)),
            Some((Order::Stop, _)) | None => Err(io::ErrorKind::Interrupted.into()),
            Some((Order::Ask(_), _)) => Err(io::Error::other("the machine is being made")),
        }
    }
}

impl Opener for Asking {
    fn open(&self, file: &FileSpec, spec: &FileStorageSpec) -> BlockResult<Arc<dyn Storage>> {
        if !matches!(file.protocol.as_str(), "" | "file") {
            let protocol = &file.protocol;
            return Err(Error::Unsupported(format!("a machine's disk is a file, and not by '{protocol}'")));
        }
        let opened = self.ask(&file.name, spec.access == Access::ReadWrite);
        let opened = opened.map_err(|e| Error::io("open", &file.name, e))?;
        let identity = opened.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        let mut all = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        match FileStorage::from_file(opened, file.name.clone(), spec) {
            Err(Error::Locked { name, permission, .. })
                if identity.is_some_and(|this| all.contains(&this)) =>
            {
                Err(Error::LockedHere { name, permission })
            }
            Err(error) => Err(error),
            Ok(storage) => {
                all.extend(identity);
                Ok(Arc::new(storage))
            }
        }
    }

    fn create(&self, file: &FileSpec) -> BlockResult<Arc<dyn Storage>> {
        Err(Error::Unsupported(format!("a running machine makes no file '{}'", file.name)))
    }
}

/// Opens the images of a machine.
///
/// # Errors
/// An image that cannot be opened, or whose format must be told.
pub fn disks(link: &Arc<Link>, files: &[DiskFile]) -> anyhow::Result<Vec<Disk>> {
    let mut registry = Registry::builtin();
    umbra_block_formats::register(&mut registry);
    let opened = Arc::new(Mutex::default());
    let open = |(number, file): (usize, &DiskFile)| {
        let opener = Arc::new(Asking { link: link.clone(), disk: number as u32, opened: opened.clone() });
        let environment = Environment { registry: registry.clone(), opener, secrets: Default::default() };
        open_one(&environment, file)
    };
    files.iter().enumerate().map(open).collect()
}

fn open_one(environment: &Environment, file: &DiskFile) -> anyhow::Result<Disk> {
    let spec = NodeSpec::new(file.name.clone(), file.format.as_deref());
    let spec = if file.read_only { spec } else { spec.writable() };
    let disk = Disk::open(environment, &spec)
        .map_err(|e| anyhow::anyhow!("cannot open the disk {}: {e}", file.name))?;
    let guessed_raw = file.format.is_none() && disk.node().format_name() == "raw";
    if guessed_raw && !file.read_only {
        // A guest could write there what the next run would take for an image that names any file of the host.
        anyhow::bail!(
            "{} has no format that is known; if it is a plain image, give --disk {},format=raw",
            file.name,
            file.name
        );
    }
    Ok(disk)
}
