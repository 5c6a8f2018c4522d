//! memtest86+ in place of a kernel, by Linux' boot protocol, read off the screen that it draws on the serial line.
//!
//! Its long form is one whole pass: ten tests, and the bit fade test, which lets memory rest for minutes. Its short form is
//! the ten tests on less memory, and ends when the bit fade test begins.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Outcome;
use super::cases::{Case, Length, MEMTEST};
use super::screen::Screen;
use crate::process::{Next, Process};
use crate::umbra::Umbra;

/// Memory of the short form in MiB.
const SMOKE_MIB: u32 = 16;
const SMOKE_LIMIT: Duration = Duration::from_secs(150);
const LONG_LIMIT: Duration = Duration::from_secs(1800);
/// Number of the bit fade test.
const BIT_FADE: u32 = 10;
/// Lines of the screen with the test's number and the counts, from 0.
const TEST_LINE: usize = 3;
const COUNT_LINE: usize = 8;
const ESCAPE: u8 = 0x1b;

/// What its screen says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub test: u32,
    pub passes: u32,
    pub errors: u64,
}

/// Reads the screen; nothing until all of it is there.
pub(crate) fn state(screen: &Screen) -> Option<State> {
    let number = |line: usize, after: &str| -> Option<u64> {
        screen.line(line).split_once(after)?.1.split_whitespace().next()?.parse().ok()
    };
    Some(State {
        test: u32::try_from(number(TEST_LINE, "| Test #")?).ok()?,
        passes: u32::try_from(number(COUNT_LINE, "| Pass:")?).ok()?,
        errors: number(COUNT_LINE, "Errors:")?,
    })
}

/// Runs it as far as it shall go.
pub(super) fn run(umbra: &Umbra, case: &Case, length: Length) -> Result<Outcome> {
    let image = MEMTEST.unpacked(false, |_| Ok(()))?.join("boot/memtest86+x64.bin");
    let memory = if length.long { case.program.memory_mib() } else { SMOKE_MIB };
    let mut command = umbra.command(["run", "--accel", "soft", "--no-reboot", "--kernel"]);
    command.arg(&image).args(["--append", "console=ttyS0,115200"]);
    command.args(["--cpus", &case.cpus.to_string(), "--memory", &format!("{memory}M")]);
    let limit = if length.long { LONG_LIMIT } else { SMOKE_LIMIT };
    let process = Process::start_split(&command, ESCAPE)?;
    let mut screen = Screen::new();
    let mut first = None;
    loop {
        let piece = match process.next(limit) {
            Next::Line(piece) => piece,
            Next::Ended => bail!("it ended by itself; {}", told(&screen, first.as_deref())),
            Next::Late => bail!("it took too long; {}", told(&screen, first.as_deref())),
        };
        screen.draw(&piece.text);
        first.get_or_insert(piece.text);
        let Some(state) = state(&screen) else { continue };
        if state.errors > 0 {
            bail!("it found errors; {}", told(&screen, None));
        }
        let done = if length.long { state.passes > 0 } else { state.test >= BIT_FADE };
        if done {
            let what = if length.long { "one pass" } else { "tests 0 to 9" };
            return Ok(Outcome {
                took: piece.at,
                told: format!("{what} over {memory} MiB without an error"),
            });
        }
    }
}

/// What was seen, for a message: the screen, or the first words where there was none.
fn told(screen: &Screen, first: Option<&str>) -> String {
    let shown = screen.told();
    if shown.is_empty() {
        format!("it said: {}", first.unwrap_or("nothing"))
    } else {
        format!("its screen:{shown}")
    }
}
