//! `bench`: many requests to an image, and how long they took.

use std::collections::VecDeque;
use std::time::Instant;

use umbra_block::{Aio, Disk, IoBuf, Queue, Request};

use super::failure::{Doing, Failure, Outcome};
use super::getopt::Parsed;
use super::open::{Cache, Want};
use super::{Tool, print, size};

/// What the options say.
#[derive(Debug)]
struct Plan {
    count: u64,
    depth: u64,
    offset: u64,
    size: u64,
    step: u64,
    aio: Aio,
    native: bool,
    write: bool,
    pattern: u8,
    /// Requests from one flush to the next; 0 for none.
    flush: u64,
    drain: bool,
}

/// The number of a flush; those of requests are their buffers'.
const FLUSH: u64 = u64::MAX;

pub fn run(tool: &Tool, parsed: &Parsed) -> Outcome {
    let plan = plan(parsed)?;
    let name = tool.one_name(parsed)?;
    Cache::parse(parsed.last("cache"), "").map_err(|_| Failure::new("Invalid cache mode"))?;
    let mut want = Want::new(parsed, name)?;
    if plan.native && !want.cache.direct {
        return Err(Failure::new(format!(
            "Could not open '{name}': aio=native was specified, but it requires cache.direct=on, which was not specified."
        )));
    }
    want.writable = plan.write;
    let disk = tool.open(&want)?;
    let Plan { count, depth, offset, size, step, .. } = plan;
    let kind = if plan.write { "write" } else { "read" };
    print(&format!(
        "Sending {count} {kind} requests, {size} bytes each, {depth} in parallel (starting at offset {offset}, step size {step})\n"
    ));
    if plan.flush > 0 {
        print(&format!("Sending flush every {} requests\n", plan.flush));
    }
    let took = measure(tool, &disk, &plan)?;
    print(&format!("Run completed in {took:.3} seconds.\n"));
    disk.close()?;
    Ok(0)
}

fn plan(parsed: &Parsed) -> Outcome<Plan> {
    const MAX: u64 = i32::MAX as u64;
    let number = |name: &str, what: &str, bounds: std::ops::RangeInclusive<u64>| {
        parsed.last(name).map(|text| size::bounded(what, text, bounds)).transpose()
    };
    let count = number("count", "request count", 1..=MAX)?.unwrap_or(75_000);
    let depth = number("depth", "queue depth", 1..=MAX)?.unwrap_or(64);
    let offset = number("offset", "offset", 0..=i64::MAX as u64)?.unwrap_or(0);
    let size = number("buffer-size", "buffer size", 1..=MAX)?.unwrap_or(4096);
    let step = number("step-size", "step size", 0..=MAX)?.filter(|step| *step > 0).unwrap_or(size);
    let pattern = number("pattern", "pattern byte", 0..=0xff)?.unwrap_or(0) as u8;
    let flush = number("flush-interval", "flush interval", 0..=MAX)?.unwrap_or(0);
    let (aio, native) = match parsed.last("aio").or(parsed.has("native").then_some("native")) {
        None | Some("threads") => (Aio::Threads, false),
        Some("io_uring") => (Aio::Uring, false),
        // The kernel's older interface for the same.
        Some("native") => (Aio::Uring, true),
        Some(other) => return Err(Failure::new(format!("Invalid aio option: {other}"))),
    };
    let write = parsed.has("write");
    if flush > 0 && !write {
        return Err(Failure::new("--flush-interval is only available in write tests"));
    }
    if flush > 0 && flush < depth {
        return Err(Failure::new("Flush interval can't be smaller than depth"));
    }
    let drain = !parsed.has("no-drain");
    Ok(Plan { count, depth, offset, size, step, aio, native, write, pattern, flush, drain })
}

/// Sends all requests; how many seconds they took.
fn measure(tool: &Tool, disk: &Disk, plan: &Plan) -> Outcome<f64> {
    let depth = plan.depth.min(plan.count);
    let bytes = depth.checked_mul(plan.size.next_multiple_of(4096)).and_then(|len| usize::try_from(len).ok());
    let mut memory: Vec<u8> = Vec::new();
    let room = bytes.and_then(|len| Some((len, len.checked_add(4096)?)));
    let (len, room) = room.ok_or_else(|| Failure::new("the requests together are larger than any memory"))?;
    memory
        .try_reserve_exact(room)
        .map_err(|_| Failure::new(format!("there is no memory for {len} bytes in requests")))?;
    memory.resize(room, plan.pattern);
    // Around the page cache, memory is to be aligned.
    let start = memory.as_ptr().align_offset(4096);
    let bufs: Vec<IoBuf<'_>> = memory[start..start + len]
        .chunks_mut(plan.size.next_multiple_of(4096) as usize)
        .map(|chunk| IoBuf::new(&mut chunk[..plan.size as usize]))
        .collect();
    let began = Instant::now();
    disk.queue(plan.aio, bufs.len(), |queue| {
        if plan.aio == Aio::Uring && queue.aio() == Aio::Threads {
            tool.say("io_uring is not to be had here, so threads do the same");
        }
        send(tool, queue, &bufs, disk.size(), plan)
    })?;
    Ok(began.elapsed().as_secs_f64())
}

/// Keeps as many requests under way as there are buffers.
fn send<'env>(
    tool: &Tool,
    queue: &mut Queue<'_, 'env>,
    bufs: &[IoBuf<'env>],
    disk_size: u64,
    plan: &Plan,
) -> Outcome<()> {
    let mut free: VecDeque<usize> = (0..bufs.len()).collect();
    let (mut offset, mut sent, mut ended, mut flushing) = (plan.offset, 0, 0, false);
    let mut done = Vec::with_capacity(bufs.len());
    while ended < plan.count || queue.under_way() > 0 {
        // A flush that drains waits for what was sent before it, and what comes next waits for the flush.
        let until = match plan.flush {
            interval if interval > 0 && plan.drain => ((ended / interval + 1) * interval).min(plan.count),
            _ => plan.count,
        };
        while !flushing && sent < until {
            let Some(number) = free.pop_front() else { break };
            let request = match plan.write {
                true => Request::Write { offset, srcs: vec![bufs[number].as_src()] },
                false => Request::Read { offset, bufs: vec![bufs[number]] },
            };
            queue.push(number as u64, request);
            sent += 1;
            offset = next(offset, disk_size, plan);
        }
        queue.wait(&mut done);
        for done in done.drain(..) {
            done.result.doing(|| "Failed request".to_owned())?;
            if done.tag == FLUSH {
                flushing = false;
                continue;
            }
            free.push_back(done.tag as usize);
            ended += 1;
            if plan.flush > 0 && ended % plan.flush == 0 && ended < plan.count {
                flushing = plan.drain;
                queue.push(FLUSH, Request::Flush);
            }
        }
        tool.signals.cancel().check()?;
    }
    Ok(())
}

/// Where the next request begins: a step further, around the disk's end, and at its beginning where it would not fit.
fn next(offset: u64, disk_size: u64, plan: &Plan) -> u64 {
    let next = offset.saturating_add(plan.step).checked_rem(disk_size).unwrap_or(0);
    if next.saturating_add(plan.size) <= disk_size { next } else { 0 }
}
