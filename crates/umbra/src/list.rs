//! `umbra ls`: machines that run, and what ended ones left.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;
use umbra_server::{Client, Port, Protocol, VmInfo, VmState};

use crate::cli::ListArgs;
use crate::commands::print;
use crate::paths::{runtime_folder, take_name};
use crate::record::{self, Record, now_ms};

/// A machine in the list; as JSON, fields are only ever added.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    /// `running`, `paused` or `ended`.
    state: &'static str,
    engine: String,
    cpus: u64,
    memory: u64,
    broker_pid: Option<u32>,
    worker_pid: Option<u32>,
    detached: bool,
    started_ms: u64,
    ports: Vec<Port>,
    ended_ms: Option<u64>,
    /// None of a machine whose processes were killed.
    exit_code: Option<u8>,
    ending: Option<String>,
    message: Option<String>,
}

impl From<VmInfo> for Listed {
    fn from(vm: VmInfo) -> Self {
        Self {
            name: vm.name,
            state: if vm.state == VmState::Running { "running" } else { "paused" },
            engine: vm.engine,
            cpus: vm.cpus.into(),
            memory: vm.memory,
            broker_pid: Some(vm.broker_pid),
            worker_pid: Some(vm.worker_pid),
            detached: vm.detached,
            started_ms: vm.started_ms,
            ports: vm.ports,
            ended_ms: None,
            exit_code: None,
            ending: None,
            message: None,
        }
    }
}

impl From<Record> for Listed {
    fn from(record: Record) -> Self {
        let number = |name: &str| record.spec[name].as_u64().unwrap_or(0);
        Self {
            state: "ended",
            cpus: number("cpus"),
            memory: number("memory"),
            name: record.name,
            engine: record.engine,
            broker_pid: None,
            worker_pid: None,
            detached: record.detached,
            started_ms: record.started_ms,
            ports: Vec::new(),
            ended_ms: record.ended_ms,
            exit_code: record.exit_code,
            ending: record.ending,
            message: record.message,
        }
    }
}

/// `umbra ls`.
///
/// # Errors
/// The folder of control sockets, or that of what machines left, cannot be read.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut machines: BTreeMap<String, Listed> = BTreeMap::new();
    // A machine that ends meanwhile is in one of the two; one that runs again is running.
    let records = record::all();
    // Who asks for running ones alone needs no home; but dead ones are noticed.
    let records = if args.all { records? } else { records.unwrap_or_default() };
    let ended = records.into_iter().filter(|record| args.all && record.ended_ms.is_some());
    machines.extend(ended.map(|record| (record.name.clone(), record.into())));
    machines.extend(running()?.into_iter().map(|vm| (vm.name.clone(), vm.into())));
    let machines: Vec<_> = machines.into_values().collect();
    if args.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&machines)?));
    }
    print(&table(&machines, now_ms()))
}

/// All machines that answer. What a dead one left in the folder of control sockets is removed.
fn running() -> anyhow::Result<Vec<VmInfo>> {
    let folder = runtime_folder()?;
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let sockets =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "sock"));
    let mut machines = Vec::new();
    for socket in sockets {
        match Client::new(&socket).info() {
            Ok(info) => machines.push(info),
            Err(_) => {
                let name = socket.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
                // Nobody has the name: nobody listens there, nor is about to.
                if crate::cli::parse_name(name).is_ok()
                    && let Ok(Some(_taken)) = take_name(name)
                {
                    for file in [socket.clone(), socket.with_extension("vsock")] {
                        let _ = std::fs::remove_file(file);
                    }
                }
            }
        }
    }
    Ok(machines)
}

fn table(machines: &[Listed], now: u64) -> String {
    let mut rows: Vec<[String; 8]> = Vec::new();
    rows.push(["NAME", "STATE", "SINCE", "ENGINE", "CPUS", "MEMORY", "PID", "PORTS"].map(String::from));
    for vm in machines {
        let state = match (vm.state, vm.exit_code) {
            ("ended", Some(code)) => format!("ended ({code})"),
            ("ended", None) => "killed".into(),
            (state, _) => state.into(),
        };
        let since = now.saturating_sub(vm.ended_ms.unwrap_or(vm.started_ms)) / 1000;
        let pid = vm.worker_pid.map_or("-".into(), |pid| pid.to_string());
        let ports = vm.ports.iter().map(arrow).collect::<Vec<_>>().join(", ");
        let memory = format!("{} MiB", vm.memory >> 20);
        rows.push([
            vm.name.clone(),
            state,
            ago(since),
            vm.engine.clone(),
            vm.cpus.to_string(),
            memory,
            pid,
            ports,
        ]);
    }
    let mut widths = [0; 8];
    for row in &rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = cell.len().max(*width));
    }
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            // Numbers.
            4..=6 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// A port and what it leads to.
pub fn arrow(port: &Port) -> String {
    let udp = if port.protocol == Protocol::Udp { "/udp" } else { "" };
    format!("{}->{}{udp}", port.host, port.guest_port)
}

/// Seconds in the largest unit of which there are two.
fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let port = Port { protocol: Protocol::Udp, host: ([127, 0, 0, 1], 53).into(), guest_port: 5353 };
        let vm = |name: &str, state, exit_code| Listed {
            name: name.into(),
            state,
            engine: "soft".into(),
            cpus: 2,
            memory: 1 << 30,
            broker_pid: None,
            worker_pid: Some(77).filter(|_| state != "ended"),
            detached: true,
            started_ms: 0,
            ports: Vec::new(),
            ended_ms: (state == "ended").then_some(7_000_000),
            exit_code,
            ending: None,
            message: None,
        };
        let machines = [
            Listed { ports: vec![port], ..vm("web", "running", None) },
            vm("a-longer-name", "ended", Some(3)),
            vm("x", "ended", None),
        ];
        assert_eq!(
            table(&machines, 7_200_000),
            "NAME           STATE      SINCE  ENGINE  CPUS    MEMORY  PID  PORTS\n\
             web            running    2 h    soft       2  1024 MiB   77  127.0.0.1:53->5353/udp\n\
             a-longer-name  ended (3)  3 min  soft       2  1024 MiB    -\n\
             x              killed     3 min  soft       2  1024 MiB    -\n"
        );
        assert_eq!([ago(119), ago(120), ago(172_800)], ["119 s", "2 min", "2 d"]);
    }
}
