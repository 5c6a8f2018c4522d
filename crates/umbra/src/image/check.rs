//! `check`: whether an image is in order, what is lost where it is not, and mending it.

use umbra_block::{Access, CheckReport, Disk, Error, Finding, LockMode, NodeSpec, Repair};

use super::failure::{Doing, Failure, Outcome};
use super::getopt::Parsed;
use super::json::{Json, Object};
use super::open::{Cache, Want, warn_of_guess};
use super::{Tool, print, tell};

const UNCHECKED: u8 = 63;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let json = tool.wants_json(parsed)?;
    let repair = match parsed.last("repair") {
        None => Repair::None,
        Some("leaks") => Repair::Leaks,
        Some("all") => Repair::All,
        Some(other) => {
            return Err(Failure::usage(format!("--repair (-r) expects 'leaks' or 'all' not '{other}'")));
        }
    };
    let name = tool.one_name(parsed)?;
    let dry_run = parsed.has("dry-run");
    let writable = repair != Repair::None && !dry_run;
    let cache = Cache::parse(parsed.last("cache"), "source cache option")?;
    let want = Want { for_check: true, writable, cache, ..Want::new(parsed, name)? };
    let quiet = parsed.has("quiet");
    let spec = tool.spec(&want)?;
    find_backing(tool, &want, &spec)?;
    let disk = tool.open_spec(&spec, cache).doing(|| format!("Could not open '{name}'"))?;
    warn_of_guess(&want, &spec, &disk);
    let format = disk.node().format_name().to_owned();
    let first = check(tool, &disk, if writable { repair } else { Repair::None })?;
    let mended = first.leaks_fixed + first.corruptions_fixed > 0;
    let report = if mended { check(tool, &disk, Repair::None)? } else { first.clone() };
    disk.close()?;
    // Findings are an aid to people; what scripts read is on standard output.
    if !quiet {
        first.findings.iter().for_each(|finding| tell(&told(finding)));
    }
    if json {
        print(&format!("{}\n", report_json(&report, &first, name, &format).pretty()));
    } else if !quiet {
        if mended {
            print(&mended_text(&first));
        }
        print(&text(&report));
        if dry_run {
            print(&plan(&report, repair));
        }
    }
    Ok(exit_code(&report))
}

/// Fails where what lies below the image cannot be opened, though nothing of it is looked at: an image without its backing
/// file is not in order.
fn find_backing(tool: &Tool, want: &Want<'_>, spec: &NodeSpec) -> Outcome<()> {
    let looked = NodeSpec {
        for_check: false,
        access: Access::Read,
        metadata_only: true,
        lock: LockMode::None,
        ..spec.clone()
    };
    match Disk::open(&tool.environment_for(want.cache), &looked) {
        Err(error @ Error::Reference { role: "backing file", .. }) => {
            Err(error).doing(|| format!("Could not open '{}'", want.name))
        }
        // What is wrong with the image itself is the check's affair.
        _ => Ok(()),
    }
}

fn check(tool: &Tool, disk: &Disk, repair: Repair) -> Outcome<CheckReport> {
    let quiet = super::Progress::new(false, false, &tool.signals);
    let result = quiet.run(|task| disk.drained(|node| node.format().check(repair, task)));
    result.map_err(|error| match error {
        Error::Unsupported(_) => {
            Failure { code: UNCHECKED, ..Failure::new("This image format does not support checks") }
        }
        other => other.into(),
    })
}

fn exit_code(report: &CheckReport) -> u8 {
    match report {
        CheckReport { check_errors: 1.., .. } => 1,
        CheckReport { corruptions: 1.., .. } => CORRUPT,
        CheckReport { leaks: 1.., .. } => LEAKS,
        _ => 0,
    }
}

fn told(finding: &Finding) -> String {
    let kind = match (finding.fixed, finding.corruption) {
        (true, _) => "Repaired",
        (false, true) => "ERROR",
        (false, false) => "Leaked",
    };
    let loss = match (finding.loses_data, finding.fixed) {
        (false, _) => "",
        (true, true) => " (what was there is lost)",
        (true, false) => " (mending it loses what is there)",
    };
    format!("{kind}: {}{loss}", finding.what)
}

fn mended_text(first: &CheckReport) -> String {
    let fixed = (first.leaks_fixed, first.corruptions_fixed);
    format!(
        "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
         Double checking the fixed image now...\n",
        fixed.0, fixed.1
    )
}

fn text(report: &CheckReport) -> String {
    let mut text = String::new();
    if report.is_clean() {
        text.push_str("No errors were found on the image.\n");
    }
    if report.corruptions > 0 {
        text.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n",
            report.corruptions
        ));
    }
    if report.leaks > 0 {
        text.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n",
            report.leaks
        ));
    }
    if report.check_errors > 0 {
        text.push_str(&format!(
            "\n{} internal errors have occurred during the check.\n",
            report.check_errors
        ));
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        let share = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        text.push_str(&format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            report.allocated_clusters,
            report.total_clusters,
            share(report.allocated_clusters, report.total_clusters),
            share(report.fragmented_clusters, report.allocated_clusters),
            share(report.compressed_clusters, report.allocated_clusters),
        ));
    }
    if report.image_end_offset > 0 {
        text.push_str(&format!("Image end offset: {}\n", report.image_end_offset));
    }
    text
}

/// What `-r` would do.
fn plan(report: &CheckReport, repair: Repair) -> String {
    let lost = report.findings.iter().filter(|finding| finding.loses_data).count();
    match repair {
        Repair::None => String::new(),
        Repair::Leaks => format!("-r leaks would free {} leaked clusters\n", report.leaks),
        Repair::All => format!(
            "-r all would free {} leaked clusters and mend {} errors; {lost} of them lose data\n",
            report.leaks, report.corruptions
        ),
    }
}

fn report_json(report: &CheckReport, first: &CheckReport, name: &str, format: &str) -> Json {
    let some = |value: u64| (value > 0).then_some(value);
    Object::default()
        .with_some("image-end-offset", some(report.image_end_offset))
        .with_some("corruptions-fixed", some(first.corruptions_fixed))
        .with_some("compressed-clusters", some(report.compressed_clusters))
        .with_some("total-clusters", some(report.total_clusters))
        .with("check-errors", report.check_errors)
        .with_some("leaks-fixed", some(first.leaks_fixed))
        .with_some("allocated-clusters", some(report.allocated_clusters))
        .with("filename", name)
        .with("format", format)
        .with_some("leaks", some(report.leaks))
        .with_some("corruptions", some(report.corruptions))
        .with_some("fragmented-clusters", some(report.fragmented_clusters))
        .into()
}
