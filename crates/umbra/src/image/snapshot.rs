//! `snapshot`: internal snapshots.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use umbra_block::{Error, SnapshotInfo, SnapshotTarget};

use super::failure::{Failure, Outcome, told};
use super::getopt::Parsed;
use super::json::{Json, Object};
use super::open::Want;
use super::{Tool, print, size};

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let actions = ["list", "create", "apply", "delete"];
    let asked = parsed.options.iter().filter(|(key, _)| actions.contains(key)).count();
    if asked > 1 {
        return Err(Failure::usage("Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let json = tool.wants_json(parsed)?;
    let name = tool.one_name(parsed)?;
    let action = actions.into_iter().find(|action| parsed.has(action)).unwrap_or("list");
    let want = Want::new(parsed, name)?;
    let snapshot = parsed.last(action).unwrap_or_default();
    if action == "list" {
        let disk = tool.open(&Want { metadata_only: true, ..want })?;
        let list = disk.snapshots()?;
        match json {
            true => print(&format!("{}\n", Json::List(list.iter().map(self::json).collect()).pretty())),
            false if !list.is_empty() => print(&table(&list)),
            false => {}
        }
        return Ok(0);
    }
    if parsed.has("dry-run") {
        return dry_run(tool, &want, action, snapshot);
    }
    let as_qemu = tool.program == super::QEMU_NAME;
    let disk = tool.open(&want.writable())?;
    let done = match action {
        "create" => {
            let name = if snapshot.is_empty() && !as_qemu { dated_name() } else { snapshot.to_owned() };
            // Two of one name could be told apart only by their numbers; scripts that were written for `qemu-img`
            // may make them all the same.
            if !as_qemu && disk.snapshots()?.iter().any(|other| other.name == name) {
                return Err(Failure::new(format!(
                    "there is a snapshot '{name}' already; delete it with -d, or take another name (\"\" makes one of the date)"
                )));
            }
            disk.snapshot_create(&new_snapshot(name)).map(|_| ())
        }
        "apply" => disk.snapshot_apply(SnapshotTarget::Either(snapshot)),
        // To delete, `qemu-img` takes the name only: what is a number to somebody may be another's name.
        _ if as_qemu => disk.snapshot_delete(SnapshotTarget::Name(snapshot)),
        _ => disk.snapshot_delete(SnapshotTarget::Either(snapshot)),
    };
    done.map_err(|error| failed(action, snapshot, &error))?;
    disk.close()?;
    Ok(0)
}

fn failed(action: &str, name: &str, error: &Error) -> Failure {
    let why = match (action, error) {
        ("delete", Error::NotFound { .. }) => "snapshot not found".to_owned(),
        ("apply", Error::NotFound { .. }) => "Failed to load snapshot: No such file or directory".to_owned(),
        ("apply", Error::Unsupported(_)) => "Block driver does not support snapshots".to_owned(),
        ("create", Error::Unsupported(_)) => "Operation not supported".to_owned(),
        ("delete", Error::Unsupported(_)) => "snapshot not found".to_owned(),
        (_, other) => told(other),
    };
    match error {
        Error::Cancelled => Failure::interrupted(),
        _ => Failure::new(format!("Could not {action} snapshot '{name}': {why}")),
    }
}

fn dry_run(tool: &Tool, want: &Want<'_>, action: &str, name: &str) -> Outcome {
    let disk = tool.open(want)?;
    let list = disk.snapshots()?;
    let found = list.iter().find(|one| one.name == name).or_else(|| list.iter().find(|one| one.id == name));
    let text = match (action, found) {
        ("create", _) => format!("would keep '{}' as it is now in snapshot '{name}'\n", want.name),
        (_, None) => {
            let kind = "snapshot";
            return Err(failed(action, name, &Error::NotFound { kind, name: name.to_owned() }));
        }
        ("apply", Some(found)) => format!(
            "would make '{}' what it was at {} (snapshot {}, '{}'); what was written since is lost\n",
            want.name,
            date(found),
            found.id,
            found.name
        ),
        (_, Some(found)) => {
            format!("would delete snapshot {}, '{}' of {}\n", found.id, found.name, date(found))
        }
    };
    print(&text);
    Ok(0)
}

fn now() -> (u32, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_nanos())
}

fn new_snapshot(name: String) -> SnapshotInfo {
    let (date_sec, date_nsec) = now();
    SnapshotInfo { name, date_sec, date_nsec, icount: Some(0), ..SnapshotInfo::default() }
}

/// A name made of the time: snapshots that nobody named are found again by it.
fn dated_name() -> String {
    date_of(now().0).replace(' ', "T")
}

/// When it was made, in local time.
pub fn date(snapshot: &SnapshotInfo) -> String {
    date_of(snapshot.date_sec)
}

fn date_of(seconds: u32) -> String {
    match Timestamp::from_second(seconds.into()) {
        Ok(time) => time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => seconds.to_string(),
    }
}

/// A snapshot as `qemu-img info --output=json` tells of it.
pub fn json(snapshot: &SnapshotInfo) -> Json {
    Object::default()
        .with_some("icount", snapshot.icount)
        .with("vm-clock-nsec", snapshot.vm_clock_nsec % 1_000_000_000)
        .with("name", snapshot.name.as_str())
        .with("date-sec", snapshot.date_sec)
        .with("date-nsec", snapshot.date_nsec)
        .with("vm-clock-sec", snapshot.vm_clock_nsec / 1_000_000_000)
        .with("id", snapshot.id.as_str())
        .with("vm-state-size", snapshot.vm_state_size)
        .into()
}

/// The list that `qemu-img snapshot -l` prints.
pub fn table(snapshots: &[SnapshotInfo]) -> String {
    let mut text = String::from("Snapshot list:\n");
    let mut line = |columns: [&str; 6]| {
        let [id, tag, vm_size, date, clock, icount] = columns;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{id:7} {tag:16} {vm_size:>8} {date:>19} {clock:>15} {icount:>10}");
    };
    line(["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"]);
    for snapshot in snapshots {
        let millis = snapshot.vm_clock_nsec / 1_000_000;
        let seconds = millis / 1000;
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            millis % 1000
        );
        let icount = snapshot.icount.map_or(String::new(), |count| count.to_string());
        line([
            &snapshot.id,
            &snapshot.name,
            &size::human(snapshot.vm_state_size),
            &date(snapshot),
            &clock,
            &icount,
        ]);
    }
    text
}
