//! A split queue (section 2.7), as a device sees it: chains come out, and go back completed.
//!
//! The state is ours and not `virtio-queue`'s: that crate ends the walk of a chain silently at a loop or an index that
//! cannot be, which here must be told apart from a chain's end, and knows neither reset with chains in flight nor a pause.
//! A queue may be used from several threads at once.

mod batch;
mod chain;
mod ring;

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use umbra_device::DeviceError;
use umbra_memory::Memory;
use umbra_state::{Record, Saved};

pub use batch::Room;
pub use chain::Chain;
use ring::Broken;
pub(crate) use ring::Rings;

use crate::device::Feature;
use crate::interrupts::{Interrupts, NO_VECTOR};
use crate::lock;

umbra_state::saved! {
    /// A queue. Nothing of it was in flight.
    pub struct QueueV1: "virtio-queue", 1 {
        /// Its size.
        1 size: u16,
        /// Address of the descriptor table.
        2 descriptors: u64,
        /// Address of the available ring.
        3 available: u64,
        /// Address of the used ring.
        4 used: u64,
        /// Whether the driver has enabled it.
        5 enabled: bool,
        /// Its MSI-X vector.
        6 vector: u16,
        /// The next entry of the available ring.
        7 next_available: u16,
        /// The next entry of the used ring.
        8 next_used: u16,
        /// The used ring's index when the driver was told last.
        9 signalled: Option<u16>,
        /// Whether the driver has broken it.
        10 broken: bool,
    }
}

/// What the registers of a queue hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setup {
    pub(crate) rings: Rings,
    pub(crate) enabled: bool,
    pub(crate) vector: u16,
}

struct State {
    setup: Setup,
    /// The driver is ready.
    started: bool,
    /// The machine stands: nothing is taken.
    paused: bool,
    broken: bool,
    event_index: bool,
    indirect: bool,
    next_available: u16,
    next_used: u16,
    signalled: Option<u16>,
    /// Chains that were taken and are not back.
    in_flight: usize,
    /// Moves with each reset: chains of an old life are not given back.
    epoch: u64,
}

impl State {
    fn is_open(&self) -> bool {
        self.started && !self.paused && self.setup.enabled && !self.broken
    }

    /// As after a reset; what is in flight stays so.
    fn clear(&mut self, size: u16) {
        let Self { paused, in_flight, epoch, .. } = *self;
        *self = Self { paused, in_flight, epoch: epoch + 1, ..Self::new(size) };
    }

    fn new(size: u16) -> Self {
        let rings = Rings { size, ..Rings::default() };
        Self {
            setup: Setup { rings, enabled: false, vector: NO_VECTOR },
            started: false,
            paused: true,
            broken: false,
            event_index: false,
            indirect: false,
            next_available: 0,
            next_used: 0,
            signalled: None,
            in_flight: 0,
            epoch: 0,
        }
    }
}

/// A queue of a device.
pub struct Queue {
    memory: Arc<Memory>,
    interrupts: Interrupts,
    size_max: u16,
    state: Mutex<State>,
    /// Nothing is in flight.
    landed: Condvar,
}

impl Queue {
    /// A queue of at most `size_max` entries, a power of two. It is made paused.
    pub(crate) fn new(memory: Arc<Memory>, interrupts: Interrupts, size_max: u16) -> Arc<Self> {
        let state = Mutex::new(State::new(size_max));
        Arc::new(Self { memory, interrupts, size_max, state, landed: Condvar::new() })
    }

    /// Takes the next chain. `None` while there is none: the driver will then say when there is one.
    pub fn pop(self: &Arc<Self>) -> Option<Chain> {
        let mut state = lock(&self.state);
        if !state.is_open() {
            return None;
        }
        match self.next(&mut state) {
            Ok(chain) => chain,
            Err(Broken) => {
                self.break_down(&mut state);
                None
            }
        }
    }

    fn next(self: &Arc<Self>, state: &mut State) -> Result<Option<Chain>, Broken> {
        if !self.is_filled(state)? {
            return Ok(None);
        }
        let rings = state.setup.rings;
        let head = rings.head(&self.memory, state.next_available)?;
        let (readable, writable) = rings.chain(&self.memory, head, state.indirect)?;
        state.next_available = state.next_available.wrapping_add(1);
        state.in_flight += 1;
        Ok(Some(Chain { queue: self.clone(), head, epoch: state.epoch, readable, writable }))
    }

    /// Whether there is a chain. If not, the driver is asked to tell of the next one.
    fn is_filled(&self, state: &State) -> Result<bool, Broken> {
        let rings = state.setup.rings;
        let waiting = || {
            let filled = rings.available_index(&self.memory)?.wrapping_sub(state.next_available);
            if filled <= rings.size { Ok(filled > 0) } else { Err(Broken) }
        };
        if waiting()? {
            return Ok(true);
        }
        if !state.event_index {
            return Ok(false);
        }
        rings.set_available_event(&self.memory, state.next_available)?;
        // Either the driver sees the event index, or we see its chain.
        fence(Ordering::SeqCst);
        waiting()
    }

    /// Whether [`Queue::pop`] would give something now.
    pub fn has_chain(&self) -> bool {
        let state = lock(&self.state);
        state.is_open() && self.is_filled(&state).unwrap_or(false)
    }

    /// Gives a chain back, and tells the driver if it wants to be told.
    fn complete(&self, chain: &Chain, written: u32) {
        let mut state = lock(&self.state);
        if chain.epoch != state.epoch || !state.started || state.broken {
            return;
        }
        match self.put(&mut state, std::iter::once((chain.head, written))) {
            // The lock is held, so that no interrupt of an old life comes after a reset.
            Ok(true) => self.interrupts.queue(state.setup.vector),
            Ok(false) => {}
            Err(Broken) => self.break_down(&mut state),
        }
    }

    /// Whether the driver is to be told.
    fn put(&self, state: &mut State, chains: impl Iterator<Item = (u16, u32)>) -> Result<bool, Broken> {
        let rings = state.setup.rings;
        for (head, written) in chains {
            rings.put_used(&self.memory, state.next_used, head, written)?;
            state.next_used = state.next_used.wrapping_add(1);
        }
        rings.set_used_index(&self.memory, state.next_used)?;
        // Either the driver sees the chain, or we see what it wants.
        fence(Ordering::SeqCst);
        if !state.event_index {
            return Ok(!rings.wants_silence(&self.memory)?);
        }
        let event = rings.used_event(&self.memory)?;
        // Section 2.7.10: whether the index went past the event since the driver was told.
        let passed =
            |old| state.next_used.wrapping_sub(event).wrapping_sub(1) < state.next_used.wrapping_sub(old);
        let wanted = state.signalled.is_none_or(passed);
        if wanted {
            state.signalled = Some(state.next_used);
        }
        Ok(wanted)
    }

    fn break_down(&self, state: &mut State) {
        state.broken = true;
        self.interrupts.needs_reset();
    }

    /// A chain makes no sense.
    fn refuse(&self, chain: &Chain) {
        let mut state = lock(&self.state);
        if chain.epoch == state.epoch {
            self.break_down(&mut state);
        }
    }

    /// A chain is back.
    fn landed(&self) {
        let mut state = lock(&self.state);
        state.in_flight -= 1;
        if state.in_flight == 0 {
            self.landed.notify_all();
        }
    }
}

impl Queue {
    pub(crate) fn setup(&self) -> Setup {
        lock(&self.state).setup
    }

    /// Changes what the driver sets up before it enables the queue; afterwards nothing changes but the vector.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Setup)) {
        let mut state = lock(&self.state);
        let before = state.setup;
        change(&mut state.setup);
        let size = state.setup.rings.size;
        if before.enabled {
            state.setup = Setup { vector: state.setup.vector, ..before };
        } else if !size.is_power_of_two() || size > self.size_max {
            state.setup.rings.size = before.rings.size;
        }
        self.check(&mut state);
    }

    /// A queue that is in use must be where a queue can be.
    fn check(&self, state: &mut State) {
        if state.started && state.setup.enabled && !state.setup.rings.are_aligned() && !state.broken {
            self.break_down(state);
        }
    }

    /// The driver is ready and has negotiated `features`.
    pub(crate) fn start(&self, features: u64) {
        let mut state = lock(&self.state);
        let features = Feature::from_bits_truncate(features);
        state.event_index = features.contains(Feature::EVENT_INDEX);
        state.indirect = features.contains(Feature::INDIRECT_DESCRIPTORS);
        state.started = true;
        self.check(&mut state);
    }

    /// As after a reset: what is in flight will not be given back.
    pub(crate) fn reset(&self) {
        lock(&self.state).clear(self.size_max);
    }

    /// Whether something is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        lock(&self.state).in_flight > 0
    }

    /// Nothing is taken any more.
    pub(crate) fn pause(&self) {
        lock(&self.state).paused = true;
    }

    /// Waits until nothing is in flight.
    pub(crate) fn wait(&self) {
        let mut state = lock(&self.state);
        while state.in_flight > 0 {
            state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Goes on after [`Queue::pause`].
    pub(crate) fn resume(&self) {
        lock(&self.state).paused = false;
    }

    pub(crate) fn save(&self) -> Record {
        let state = lock(&self.state);
        let Setup { rings: Rings { size, descriptors, available, used }, enabled, vector } = state.setup;
        let State { next_available, next_used, signalled, broken, .. } = *state;
        let saved = QueueV1 {
            size,
            descriptors,
            available,
            used,
            enabled,
            vector,
            next_available,
            next_used,
            signalled,
            broken,
        };
        saved.to_record("queue")
    }

    /// Takes a saved state of a queue of the device `id`; `vectors` are how many there are.
    pub(crate) fn load(&self, id: &str, record: &Record, vectors: u16) -> Result<(), DeviceError> {
        let saved = QueueV1::from_record(record).map_err(DeviceError::state(id))?;
        let QueueV1 {
            size,
            descriptors,
            available,
            used,
            enabled,
            vector,
            next_available,
            next_used,
            signalled,
            broken,
        } = saved;
        let rings = Rings { size, descriptors, available, used };
        let sound = size.is_power_of_two()
            && size <= self.size_max
            && (vector == NO_VECTOR || vector < vectors)
            && (broken || !enabled || rings.are_aligned());
        if !sound {
            return Err(DeviceError::Impossible { id: id.into(), what: "queue" });
        }
        let mut state = lock(&self.state);
        state.clear(self.size_max);
        state.setup = Setup { rings, enabled, vector };
        (state.next_available, state.next_used) = (next_available, next_used);
        (state.signalled, state.broken) = (signalled, broken);
        Ok(())
    }
}
