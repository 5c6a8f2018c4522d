//! The 8254 interval timer with its three counters, and port 0x61, as a pure model.
//!
//! The authority is Intel's 8254 data sheet, and Intel's ICH data sheets for port 0x61 ("NMI Status and Control"). Counter 0
//! is the timer interrupt, counter 1 once refreshed memory, counter 2 is the speaker's tone, with its gate and output
//! at port 0x61. Time comes in ticks of the 8254's clock since machine time zero.

use crate::PitV1;
use crate::pit_counter::Counter;

/// The frequency of the 8254's clock.
pub const PIT_HZ: u64 = 1_193_182;

/// Counter 1's period, which port 0x61 shows as a bit that toggles.
const REFRESH_TICKS: u64 = 18;

/// Machine time `ns` in ticks.
pub(crate) fn ticks(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(PIT_HZ) / 1_000_000_000) as u64
}

/// The machine time at which `tick` begins.
pub(crate) fn ns_of(tick: u64) -> u64 {
    (u128::from(tick) * 1_000_000_000).div_ceil(u128::from(PIT_HZ)).try_into().unwrap_or(u64::MAX)
}

pub(crate) struct PitChip {
    counters: [Counter; 3],
    /// Port 0x61, bits 0 to 3: counter 2's gate, the speaker, and two that are only kept.
    port_b: u8,
    /// When counter 0's output rises and that interrupt has not been raised.
    edge_at: Option<u64>,
}

impl PitChip {
    pub(crate) fn new() -> Self {
        Self {
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            port_b: 0,
            edge_at: None,
        }
    }

    /// Lets time pass until `tick`. True if counter 0 has raised its interrupt; edges that were missed are one.
    /// To be called before every access.
    pub(crate) fn advance(&mut self, tick: u64) -> bool {
        for counter in &mut self.counters {
            counter.advance(tick);
        }
        let raised = self.edge_at.is_some_and(|at| at <= tick);
        if raised {
            self.edge_at = self.counters[0].next_rise(tick);
        }
        raised
    }

    /// When [`PitChip::advance`] is to be called at the latest.
    pub(crate) fn edge_at(&self) -> Option<u64> {
        self.edge_at
    }

    /// Counter 0's output.
    pub(crate) fn irq(&self, tick: u64) -> bool {
        self.counters[0].out(tick)
    }

    /// Reads port 0x40 + `offset`. The control word cannot be read.
    pub(crate) fn read(&mut self, offset: u16, tick: u64) -> u8 {
        self.counters.get_mut(usize::from(offset)).map_or(0xff, |counter| counter.read(tick))
    }

    /// Writes port 0x40 + `offset`.
    pub(crate) fn write(&mut self, offset: u16, value: u8, tick: u64) {
        match self.counters.get_mut(usize::from(offset)) {
            Some(counter) => counter.write(value, tick),
            None => self.control(value, tick),
        }
        self.edge_at = self.counters[0].next_rise(tick);
    }

    fn control(&mut self, value: u8, tick: u64) {
        let access = value >> 4 & 3;
        match self.counters.get_mut(usize::from(value >> 6)) {
            Some(counter) if access == 0 => counter.latch_count(tick),
            Some(counter) => counter.set_mode(access, value >> 1 & 7, value & 1 != 0),
            None => self.read_back(value, tick),
        }
    }

    fn read_back(&mut self, value: u8, tick: u64) {
        for (i, counter) in self.counters.iter_mut().enumerate() {
            if value >> (i + 1) & 1 == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(tick);
            }
            if value & 0x10 == 0 {
                counter.latch_status(tick);
            }
        }
    }

    pub(crate) fn read_port_b(&self, tick: u64) -> u8 {
        let refresh = ((tick / REFRESH_TICKS) & 1) as u8;
        self.port_b | refresh << 4 | u8::from(self.counters[2].out(tick)) << 5
    }

    pub(crate) fn write_port_b(&mut self, value: u8, tick: u64) {
        self.port_b = value & 0xf;
        self.counters[2].set_gate(value & 1 != 0, tick);
    }

    pub(crate) fn save(&self) -> PitV1 {
        let Self { counters, port_b, edge_at } = self;
        let of = |i: usize| &counters[i];
        PitV1 {
            mode: [0, 1, 2].map(|i| of(i).mode),
            access: [0, 1, 2].map(|i| of(i).access),
            bcd: [0, 1, 2].map(|i| of(i).bcd),
            count: [0, 1, 2].map(|i| of(i).count),
            running: [0, 1, 2].map(|i| of(i).running),
            start: [0, 1, 2].map(|i| of(i).start),
            frozen: [0, 1, 2].map(|i| of(i).frozen),
            next: [0, 1, 2].map(|i| of(i).next),
            gate: [0, 1, 2].map(|i| of(i).gate),
            written: [0, 1, 2].map(|i| of(i).written),
            read_high: [0, 1, 2].map(|i| of(i).read_high),
            latched: [0, 1, 2].map(|i| of(i).latched),
            status: [0, 1, 2].map(|i| of(i).status),
            port_b: *port_b,
            edge_at: *edge_at,
        }
    }

    /// The chip of a saved state. `Err` names an impossible value.
    pub(crate) fn load(state: &PitV1) -> Result<Self, &'static str> {
        if state.port_b > 0xf || state.gate != [true, true, state.port_b & 1 != 0] {
            return Err("port 0x61");
        }
        let counters = [load_counter(state, 0)?, load_counter(state, 1)?, load_counter(state, 2)?];
        Ok(Self { counters, port_b: state.port_b, edge_at: state.edge_at })
    }
}

fn load_counter(state: &PitV1, i: usize) -> Result<Counter, &'static str> {
    let PitV1 {
        mode,
        access,
        bcd,
        count,
        running,
        start,
        frozen,
        next,
        gate,
        written,
        read_high,
        latched,
        status,
        port_b: _,
        edge_at: _,
    } = state;
    let counts = 1..=0x1_0000;
    if mode[i] > 5 || !(1..=3).contains(&access[i]) {
        return Err("counter mode");
    }
    if !counts.contains(&count[i]) || next[i].is_some_and(|(count, _)| !counts.contains(&count)) {
        return Err("count");
    }
    Ok(Counter {
        mode: mode[i],
        access: access[i],
        bcd: bcd[i],
        count: count[i],
        running: running[i],
        start: start[i],
        frozen: frozen[i],
        next: next[i],
        gate: gate[i],
        written: written[i],
        read_high: read_high[i],
        latched: latched[i],
        status: status[i],
    })
}
