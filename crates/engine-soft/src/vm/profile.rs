//! Where a processor's time goes: samples of what its thread does, taken by a timer of the host that runs while the thread does.
//!
//! Asked for by [`crate::SoftEngine::profiled`]; otherwise there is no timer, and what remains is a byte stored at each change of tier.
//! The timer's signal comes every millisecond of the thread's processor time, or as often as the host's kernel ticks. Its handler notes the [`Activity`], the
//! site of a slow path and how much time has passed since the sample before, and asks for attention; the processor, soon after, gives them names in its
//! counters. What waits costs no time and is not seen, nor are threads of devices.

use std::cell::Cell;
use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

use iced_x86::Mnemonic;

use super::attention;
use super::time::thread_time;
use super::timer::{self, Timer};
use crate::cpu::Cpu;
use crate::native::Pool;

/// What the timer's name for a sample begins with.
const UNIT: &str = "microseconds of";
/// Nanoseconds of the thread's time between samples.
const PERIOD_NS: u64 = 1_000_000;
/// Samples that may wait for their names: more than come before attention is paid.
const WAITING_MAX: usize = 64;

/// What a processor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Activity {
    /// Finds out what comes next.
    #[default]
    Dispatch,
    /// Runs translations; where the host's instruction pointer is not in one, on the way in or out.
    Translated,
    /// The slow path of an access.
    Miss,
    /// One instruction in the interpreter, for a translation.
    Helper,
    /// Blocks in the interpreter.
    Blocks,
    /// Makes translations.
    Translate,
    /// Decodes.
    Decode,
    /// Delivers exceptions and interrupts.
    Deliver,
    /// Calls the rest of the machine.
    Device,
    /// Waits awake.
    Wait,
}

/// One sample.
#[derive(Debug, Clone, Copy)]
struct Sample {
    activity: Activity,
    /// The host's instruction pointer is in a translation.
    inside: bool,
    site: u32,
    microseconds: u32,
}

const NONE: Sample = Sample { activity: Activity::Dispatch, inside: false, site: 0, microseconds: 0 };

/// Samples on their way from the signal handler to the thread that it interrupts.
pub struct Profile {
    samples: [Cell<Sample>; WAITING_MAX],
    /// How many have been put in, and taken out.
    put: AtomicU32,
    taken: AtomicU32,
    /// The thread's time at the sample before.
    before: Cell<u64>,
}

impl Profile {
    /// Without samples.
    pub fn new() -> Box<Self> {
        let (put, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        Box::new(Self { samples: [const { Cell::new(NONE) }; WAITING_MAX], put, taken, before: Cell::new(0) })
    }
}

/// The signal; the alarm's is the one before.
pub(super) fn signal() -> i32 {
    libc::SIGRTMIN() + 3
}

thread_local! {
    /// The processor that this thread runs, if it is sampled, and where samples go.
    static SAMPLED: Cell<(*const Cpu, *const Profile)> = const { Cell::new((ptr::null(), ptr::null())) };
}

extern "C" fn take(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let (cpu, profile) = SAMPLED.get();
    if cpu.is_null() {
        return;
    }
    // SAFETY: both are set while the processor runs on this thread, which is interrupted. Of the processor three words are read, volatile;
    // the profile is shared with the thread by cells and atomics.
    unsafe {
        let rip = (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RIP as usize];
        let profile = &*profile;
        let now = thread_time();
        let put = profile.put.load(Ordering::Relaxed);
        // What finds no room is told with the next.
        if put.wrapping_sub(profile.taken.load(Ordering::Relaxed)) as usize >= WAITING_MAX {
            return;
        }
        profile.samples[put as usize % WAITING_MAX].set(Sample {
            activity: ptr::read_volatile(&raw const (*cpu).fast.activity),
            inside: Pool::Blocks.contains(rip as usize),
            site: ptr::read_volatile(&raw const (*cpu).fast.site),
            microseconds: (now.saturating_sub(profile.before.get()) / 1000) as u32,
        });
        profile.before.set(now);
        profile.put.store(put.wrapping_add(1), Ordering::Release);
        (*(*cpu).fast.attention.cast::<AtomicU32>()).fetch_or(attention::PROFILE, Ordering::SeqCst);
    }
}

/// Samples this thread, while it lives.
pub struct Sampler {
    _timer: Option<Timer>,
}

impl Sampler {
    /// Samples of what `cpu` does, if that is asked for.
    pub fn new(cpu: &Cpu) -> Self {
        let Some(profile) = &cpu.profile else { return Self { _timer: None } };
        static INSTALL: Once = Once::new();
        INSTALL.call_once(|| timer::install(signal(), take, None));
        profile.before.set(thread_time());
        SAMPLED.set((cpu, &raw const **profile));
        let timer = Timer::new(libc::CLOCK_THREAD_CPUTIME_ID, signal());
        timer.iter().for_each(|timer| timer.set(PERIOD_NS, PERIOD_NS));
        Self { _timer: timer }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        SAMPLED.set((ptr::null(), ptr::null()));
    }
}

impl Cpu {
    /// Does something else from now on; what it did before.
    #[inline(always)]
    pub(crate) fn turn_to(&mut self, activity: Activity) -> Activity {
        std::mem::replace(&mut self.fast.activity, activity)
    }

    /// Gives samples their names.
    #[cold]
    pub(crate) fn name_samples(&mut self) {
        loop {
            let Some(profile) = &self.profile else { return };
            let taken = profile.taken.load(Ordering::Relaxed);
            if profile.put.load(Ordering::Acquire) == taken {
                return;
            }
            let sample = profile.samples[taken as usize % WAITING_MAX].get();
            profile.taken.store(taken.wrapping_add(1), Ordering::Release);
            let name = match sample.activity {
                _ if sample.inside => "translated code",
                Activity::Translated => "ways into translations and out",
                Activity::Helper => mnemonic(self.translator.mnemonic(sample.site)),
                Activity::Miss => "tlb misses",
                Activity::Blocks => "interpreted blocks",
                Activity::Dispatch => "dispatching",
                Activity::Translate => "translating",
                Activity::Decode => "decoding",
                Activity::Deliver => "exceptions and interrupts",
                Activity::Device => "devices",
                Activity::Wait => "waiting awake",
            };
            self.counters.add_named(full(name), sample.microseconds.into());
        }
    }
}

/// Texts that have been made for counters. There are no more than instructions have names.
fn texts() -> &'static Mutex<HashMap<String, &'static str>> {
    static TEXTS: OnceLock<Mutex<HashMap<String, &'static str>>> = OnceLock::new();
    TEXTS.get_or_init(Mutex::default)
}

fn kept(text: String) -> &'static str {
    let mut texts = texts().lock().unwrap_or_else(PoisonError::into_inner);
    texts.entry(text).or_insert_with_key(|text| text.clone().leak())
}

fn full(name: &str) -> &'static str {
    kept(format!("{UNIT} {name}"))
}

/// The name of a helper.
fn mnemonic(mnemonic: Option<Mnemonic>) -> &'static str {
    match mnemonic {
        Some(m) => kept(format!("helper {}", format!("{m:?}").to_lowercase())),
        None => "other helpers",
    }
}

#[cfg(test)]
#[path = "profile_test.rs"]
mod profile_test;
