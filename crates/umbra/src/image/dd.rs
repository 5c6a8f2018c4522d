//! `dd`: copy blocks of an image.

use umbra_block::{Copy, CopySource, Disk, NodeSpec};

use super::copy::{is_stream, is_zero_when_new};
use super::failure::{Doing, Failure, Outcome};
use super::getopt::Parsed;
use super::open::{Cache, Want, file_spec};
use super::target::Target;
use super::{Tool, size};

/// What the operands say.
#[derive(Debug, Default)]
struct Plan {
    input: Option<String>,
    output: Option<String>,
    block: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
}

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let plan = plan(&parsed.operands)?;
    let (Some(input), Some(output)) = (&plan.input, &plan.output) else {
        return Err(Failure::new("Must specify both input and output files"));
    };
    let format = parsed.last("output-format").unwrap_or("raw");
    let driver = tool.driver(format).map_err(|_| Failure::new("Unknown file format"))?.clone();
    let disk = tool.open(&Want::new(parsed, input)?)?;
    let block = plan.block.unwrap_or(512);
    let start = plan.skip.unwrap_or(0).saturating_mul(block);
    if start > disk.size() {
        tool.say(&format!("{input}: cannot skip to specified offset"));
    }
    let rest = disk.size().saturating_sub(start);
    let len = plan.count.map_or(rest, |count| count.saturating_mul(block).min(rest));
    let target = Target {
        driver,
        name: output.clone(),
        size: len,
        backing: None,
        options: Default::default(),
        hints: Default::default(),
    };
    tool.progress(parsed).run(|task| -> Outcome<()> {
        let partial = target
            .make(tool, Cache::default(), task)
            .doing(|| format!("{output}: error while creating output image of type {format}"))?;
        let spec =
            NodeSpec { file: file_spec(output), ..NodeSpec::new(output.clone(), Some(format)).writable() };
        let made: Disk = tool.open_spec(&spec, Cache::default())?;
        let copy = Copy {
            sources: vec![CopySource { disk: &disk, start, len }],
            target: &made,
            target_start: 0,
            target_is_zero: is_zero_when_new(&made),
            from_top: None,
            compress: is_stream(&made),
            sparse: 4096,
            threads: None,
            rate: None,
            salvage: None,
        };
        copy.run(task)?;
        made.close()?;
        partial.keep();
        Ok(())
    })?;
    Ok(0)
}

fn plan(operands: &[String]) -> Outcome<Plan> {
    let mut plan = Plan::default();
    for operand in operands {
        let Some((name, value)) = operand.split_once('=') else {
            return Err(Failure::new(format!("unrecognized operand {operand}")));
        };
        match name {
            "if" => plan.input = Some(value.to_owned()),
            "of" => plan.output = Some(value.to_owned()),
            "bs" => plan.block = Some(size::bounded("bs", value, 1..=i32::MAX as u64)?),
            "count" => plan.count = Some(size::bounded("count", value, 0..=i64::MAX as u64)?),
            "skip" => plan.skip = Some(size::bounded("skip", value, 0..=i64::MAX as u64)?),
            _ => return Err(Failure::new(format!("unrecognized operand {name}"))),
        }
    }
    Ok(plan)
}
