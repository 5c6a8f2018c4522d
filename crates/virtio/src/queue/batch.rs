//! Chains that are taken and given back together: a frame over several of the driver's buffers (section 5.1.6.4).

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::ring::Broken;
use super::{Chain, Queue, State};
use crate::buffer::Segment;
use crate::lock;

/// What there is of room.
#[derive(Debug)]
pub enum Room {
    /// Chains that have it together, as few as that takes.
    Chains(Vec<Chain>),
    /// Too little now. The driver has been asked to tell when it gives more.
    Later,
    /// As many chains as may be taken do not have it.
    Never,
}

impl Queue {
    /// Takes chains with room for `len` bytes together, at most `chains_max`, or none.
    pub fn pop_room(self: &Arc<Self>, len: u64, chains_max: usize) -> Room {
        let mut state = lock(&self.state);
        if !state.is_open() {
            return Room::Later;
        }
        self.gather(&mut state, len, chains_max).unwrap_or_else(|Broken| {
            self.break_down(&mut state);
            Room::Later
        })
    }

    fn gather(self: &Arc<Self>, state: &mut State, len: u64, chains_max: usize) -> Result<Room, Broken> {
        let rings = state.setup.rings;
        let mut index = state.next_available;
        let mut room = 0;
        let mut found = Vec::new();
        let mut end = rings.available_index(&self.memory)?;
        loop {
            if end.wrapping_sub(state.next_available) > rings.size {
                return Err(Broken);
            }
            while index != end && room < len && found.len() < chains_max {
                let head = rings.head(&self.memory, index)?;
                let (readable, writable) = rings.chain(&self.memory, head, state.indirect)?;
                room += Segment::total(&writable);
                found.push((head, readable, writable));
                index = index.wrapping_add(1);
            }
            if room >= len {
                break;
            }
            if found.len() >= chains_max {
                return Ok(Room::Never);
            }
            if !state.event_index {
                return Ok(Room::Later);
            }
            rings.set_available_event(&self.memory, end)?;
            // Either the driver sees the event index, or we see what it gave.
            fence(Ordering::SeqCst);
            let before = std::mem::replace(&mut end, rings.available_index(&self.memory)?);
            if end == before {
                return Ok(Room::Later);
            }
        }
        state.next_available = index;
        state.in_flight += found.len();
        let epoch = state.epoch;
        let chain =
            |(head, readable, writable)| Chain { queue: self.clone(), head, epoch, readable, writable };
        Ok(Room::Chains(found.into_iter().map(chain).collect()))
    }

    /// Gives chains of this queue back at once, each with how many bytes of it were written: the driver sees all or none.
    pub fn complete_all(&self, chains: Vec<(Chain, u32)>) {
        let mut state = lock(&self.state);
        let lives = state.started && !state.broken;
        let epoch = state.epoch;
        let mut back = chains.iter().filter(|(chain, _)| lives && chain.epoch == epoch).peekable();
        if back.peek().is_some() {
            match self.put(&mut state, back.map(|(chain, written)| (chain.head, *written))) {
                Ok(true) => self.interrupts.queue(state.setup.vector),
                Ok(false) => {}
                Err(Broken) => self.break_down(&mut state),
            }
        }
        // Dropping them, which takes the lock, is what makes them fewer in flight.
        drop(state);
        drop(chains);
    }
}
