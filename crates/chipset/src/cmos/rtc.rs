//! The MC146818 real-time clock as a pure model (Motorola MC146818 data sheet), with a PC's century register.
//!
//! Time is a position on the divider chain, which counts nanoseconds of machine time, and the calendar second that
//! position zero stands for. Registers are made from that when they are read; a guest that writes them moves the
//! second. Nothing ticks: flags are raised for what has passed when somebody looks or an alarm goes off.

use bitflags::bitflags;

use super::CmosV1;
use super::calendar::{Date, date_from_days, days_from_date};

const SECOND: u64 = 1_000_000_000;
/// A chain that leaves reset updates the time after half a second.
const AFTER_RESET: u64 = SECOND / 2;
/// For so long before an update, "update in progress" is set.
const UPDATE_WARNING: u64 = 244_000;
/// The chain's rate where the periodic interrupt is taken off.
const CHAIN_HZ: u64 = 32_768;
const DAY: i64 = 86_400;
/// Years 0000 to 9999 lie within so many seconds of 1970; saved states outside are refused.
const EPOCH_MAX: i64 = 1 << 40;

/// Registers of the time and the date.
const SECONDS: u8 = 0;
const SECONDS_ALARM: u8 = 1;
const MINUTES: u8 = 2;
const MINUTES_ALARM: u8 = 3;
const HOURS: u8 = 4;
const HOURS_ALARM: u8 = 5;
const WEEKDAY: u8 = 6;
const DAY_OF_MONTH: u8 = 7;
const MONTH: u8 = 8;
const YEAR: u8 = 9;
const REG_A: u8 = 0xa;
const REG_B: u8 = 0xb;
const REG_C: u8 = 0xc;
const REG_D: u8 = 0xd;
/// Where firmware keeps the century; the FADT names it.
pub(super) const CENTURY: u8 = 0x32;

/// Register A: update in progress.
const A_UIP: u8 = 1 << 7;
/// Register A: both upper bits of the divider control hold the chain in reset.
const A_DIVIDER_RESET: u8 = 3 << 5;
/// Register A: the periodic rate.
const A_RATE: u8 = 0xf;
/// Register A after firmware: a 32,768 Hz crystal, 1,024 Hz periodic.
const A_INITIAL: u8 = 0x26;
/// Register D: memory and time are valid.
const D_VALID: u8 = 1 << 7;
/// An alarm byte with both these bits matches everything.
const ALARM_ANY: u8 = 3 << 6;
/// Hours in 12-hour mode: afternoon.
const AFTERNOON: u8 = 1 << 7;

bitflags! {
    /// Register B.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Control: u8 {
        const DAYLIGHT_SAVING = 1;
        const HOURS_24 = 1 << 1;
        const BINARY = 1 << 2;
        const SQUARE_WAVE = 1 << 3;
        const UPDATE_INTERRUPT = 1 << 4;
        const ALARM_INTERRUPT = 1 << 5;
        const PERIODIC_INTERRUPT = 1 << 6;
        const SET = 1 << 7;
    }

    /// Register C; the flags stand where register B has their enable bits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Flags: u8 {
        const UPDATE = 1 << 4;
        const ALARM = 1 << 5;
        const PERIODIC = 1 << 6;
        const REQUEST = 1 << 7;
    }
}

/// The clock and its 128 bytes of memory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rtc {
    /// Memory, time and alarm registers; the time registers are true while the time stands.
    ram: [u8; 128],
    a: u8,
    b: Control,
    c: Flags,
    /// The chain's position at machine time zero, modulo 2^64.
    chain_base: u64,
    /// Seconds since 1970 at the chain's position zero.
    epoch: i64,
    /// The chain's position up to which flags have been raised.
    seen: u64,
}

impl Rtc {
    /// A clock that shows `unix_ns` (nanoseconds since 1970) at machine time `now`.
    pub(super) fn new(unix_ns: u64, now: u64) -> Self {
        let position = unix_ns % SECOND;
        Self {
            ram: [0; 128],
            a: A_INITIAL,
            b: Control::HOURS_24,
            c: Flags::empty(),
            chain_base: position.wrapping_sub(now),
            epoch: (unix_ns / SECOND) as i64,
            seen: position,
        }
    }

    /// The reset input: interrupts are off. Time and memory have their battery.
    pub(super) fn reset(&mut self) {
        self.b -= Control::PERIODIC_INTERRUPT
            | Control::ALARM_INTERRUPT
            | Control::UPDATE_INTERRUPT
            | Control::SQUARE_WAVE;
        self.c = Flags::empty();
    }

    /// Puts a byte into memory, for firmware's tables.
    pub(super) fn set_memory(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    /// Reads register `index` at machine time `now`.
    pub(super) fn read(&mut self, index: u8, now: u64) -> u8 {
        match index {
            REG_A => self.a | if self.updates_soon(now) { A_UIP } else { 0 },
            REG_B => self.b.bits(),
            REG_C => {
                self.advance(now);
                let flags = std::mem::replace(&mut self.c, Flags::empty());
                (flags | request(flags, self.b)).bits()
            }
            REG_D => D_VALID,
            _ => {
                if is_time(index) {
                    self.show_time(now);
                }
                self.memory(index)
            }
        }
    }

    /// Writes register `index` at machine time `now`.
    pub(super) fn write(&mut self, index: u8, value: u8, now: u64) {
        self.advance(now);
        match index {
            REG_A => self.change(now, |rtc| rtc.a = value & !A_UIP),
            REG_B => self.change(now, |rtc| {
                rtc.b = Control::from_bits_retain(value);
                if rtc.b.contains(Control::SET) {
                    rtc.b -= Control::UPDATE_INTERRUPT;
                }
            }),
            REG_C | REG_D => {}
            _ if is_time(index) => {
                self.show_time(now);
                self.set_memory(index, value);
                if !self.stands() {
                    self.take_time(now);
                }
            }
            _ => self.set_memory(index, value),
        }
    }

    /// Raises the flags for what has happened up to machine time `now`.
    pub(super) fn advance(&mut self, now: u64) {
        let (from, to) = (self.seen, self.position(now));
        self.seen = to;
        if self.in_reset() || to <= from {
            return;
        }
        if self.period().is_some_and(|p| chain_ticks(from) / p != chain_ticks(to) / p) {
            self.c |= Flags::PERIODIC;
        }
        let seconds = to / SECOND - from / SECOND;
        if self.stands() || seconds == 0 {
            return;
        }
        self.c |= Flags::UPDATE;
        if self.seconds_to_alarm(from).is_some_and(|s| s <= seconds) {
            self.c |= Flags::ALARM;
        }
    }

    /// Whether the interrupt request is high.
    pub(super) fn interrupt(&self) -> bool {
        !request(self.c, self.b).is_empty()
    }

    /// The machine time, after `now`, of the next enabled interrupt. A flag that is up raises no further interrupt:
    /// a guest that does not keep up loses ticks, and an idle one costs nothing.
    pub(super) fn next_event(&self, now: u64) -> Option<u64> {
        if self.in_reset() {
            return None;
        }
        let position = self.position(now);
        let wants = |flag: Flags| self.b.bits() & flag.bits() != 0 && !self.c.contains(flag);
        let second = |n: u64| (position / SECOND).saturating_add(n).saturating_mul(SECOND);
        let periodic = self.period().filter(|_| wants(Flags::PERIODIC)).map(|period| {
            let tick = (chain_ticks(position) / period + 1) * period;
            u64::try_from((u128::from(tick) * u128::from(SECOND)).div_ceil(u128::from(CHAIN_HZ)))
                .unwrap_or(u64::MAX)
        });
        let runs = !self.stands();
        let update = (runs && wants(Flags::UPDATE)).then(|| second(1));
        let alarm =
            if runs && wants(Flags::ALARM) { self.seconds_to_alarm(position).map(second) } else { None };
        let at = periodic.into_iter().chain(update).chain(alarm).min()?;
        Some(now.saturating_add(at.saturating_sub(position)))
    }

    /// Whether the divider chain is held in reset.
    fn in_reset(&self) -> bool {
        self.a & A_DIVIDER_RESET == A_DIVIDER_RESET
    }

    /// Whether the time stands, so that the time registers can be set one by one.
    fn stands(&self) -> bool {
        self.in_reset() || self.b.contains(Control::SET)
    }

    fn position(&self, now: u64) -> u64 {
        if self.in_reset() { 0 } else { self.chain_base.wrapping_add(now) }
    }

    fn updates_soon(&self, now: u64) -> bool {
        !self.stands() && self.position(now) % SECOND >= SECOND - UPDATE_WARNING
    }

    /// The periodic interrupt's period in ticks of the chain. The two fastest rates are those of a slower tap.
    fn period(&self) -> Option<u64> {
        match self.a & A_RATE {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Changes register A or B and does what starting and stopping the time implies.
    fn change(&mut self, now: u64, write: impl FnOnce(&mut Self)) {
        self.show_time(now);
        let (stood, was_in_reset) = (self.stands(), self.in_reset());
        write(self);
        if was_in_reset && !self.in_reset() {
            self.chain_base = AFTER_RESET.wrapping_sub(now);
        }
        if stood && !self.stands() {
            self.take_time(now);
        }
        self.seen = self.position(now);
    }

    /// Seconds since 1970 at a position of the chain.
    fn seconds(&self, position: u64) -> i64 {
        self.epoch.wrapping_add((position / SECOND) as i64)
    }

    /// Brings the time registers up to date, unless the time stands.
    fn show_time(&mut self, now: u64) {
        if self.stands() {
            return;
        }
        let seconds = self.seconds(self.position(now));
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let Date { year, month, day } = date_from_days(days);
        let year = year.rem_euclid(10_000);
        for (register, value) in [
            (SECONDS, self.encode((time % 60) as u8)),
            (MINUTES, self.encode((time / 60 % 60) as u8)),
            (HOURS, self.encode_hour((time / 3600) as u8)),
            // 1970-01-01 was a Thursday, the fifth day of the week.
            (WEEKDAY, self.encode((days + 4).rem_euclid(7) as u8 + 1)),
            (DAY_OF_MONTH, self.encode(day)),
            (MONTH, self.encode(month)),
            (YEAR, self.encode((year % 100) as u8)),
            (CENTURY, self.encode((year / 100) as u8)),
        ] {
            self.set_memory(register, value);
        }
    }

    /// Takes the time from the time registers. Values that no clock shows are brought into range.
    fn take_time(&mut self, now: u64) {
        let field = |register| i64::from(self.decode(self.memory(register)));
        let date = Date {
            year: field(CENTURY) * 100 + field(YEAR),
            month: field(MONTH).clamp(1, 12) as u8,
            day: field(DAY_OF_MONTH).clamp(1, 31) as u8,
        };
        let hour = i64::from(self.decode_hour(self.memory(HOURS)));
        let time = hour.min(23) * 3600 + field(MINUTES).min(59) * 60 + field(SECONDS).min(59);
        let seconds = days_from_date(date) * DAY + time;
        self.epoch = seconds.wrapping_sub((self.position(now) / SECOND) as i64);
    }

    /// How many seconds after the one that holds `position` the alarm matches: 1 to 86,400.
    fn seconds_to_alarm(&self, position: u64) -> Option<u64> {
        let alarm = |register| Some(self.memory(register)).filter(|v| v & ALARM_ANY != ALARM_ANY);
        let second = alarm(SECONDS_ALARM).map(|v| i64::from(self.decode(v)));
        let minute = alarm(MINUTES_ALARM).map(|v| i64::from(self.decode(v)));
        let hour = alarm(HOURS_ALARM).map(|v| i64::from(self.decode_hour(v)));
        let impossible = |field: Option<i64>, end| field.is_some_and(|f| f >= end);
        if impossible(second, 60) || impossible(minute, 60) || impossible(hour, 24) {
            return None;
        }
        let start = self.seconds(position).rem_euclid(DAY) + 1;
        let mut at = start;
        // Skips what cannot match, an hour, a minute or a second at a time: a few hundred steps at most.
        while at < start + DAY {
            let time = at % DAY;
            if hour.is_some_and(|h| h != time / 3600) {
                at += 3600 - time % 3600;
            } else if minute.is_some_and(|m| m != time / 60 % 60) {
                at += 60 - time % 60;
            } else if second.is_some_and(|s| s != time % 60) {
                at += 1;
            } else {
                return u64::try_from(at - start + 1).ok();
            }
        }
        None
    }

    fn memory(&self, index: u8) -> u8 {
        self.ram.get(usize::from(index)).copied().unwrap_or(crate::bytes::FLOATING)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b.contains(Control::BINARY) { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, raw: u8) -> u8 {
        if self.b.contains(Control::BINARY) { raw } else { (raw >> 4) * 10 + (raw & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b.contains(Control::HOURS_24) {
            return self.encode(hour);
        }
        let twelve = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { AFTERNOON } else { 0 }
    }

    fn decode_hour(&self, raw: u8) -> u8 {
        if self.b.contains(Control::HOURS_24) {
            return self.decode(raw);
        }
        self.decode(raw & !AFTERNOON) % 12 + if raw & AFTERNOON != 0 { 12 } else { 0 }
    }

    pub(super) fn save(&self, index: u8) -> CmosV1 {
        let Self { ram, a, b, c, chain_base, epoch, seen } = self;
        CmosV1 {
            index,
            ram: *ram,
            register_a: *a,
            register_b: b.bits(),
            register_c: c.bits(),
            chain_base: *chain_base,
            epoch: *epoch,
            seen: *seen,
        }
    }

    /// A model in the saved state, and the selected register; the error says which value is impossible.
    pub(super) fn load(state: CmosV1) -> Result<(Self, u8), &'static str> {
        let CmosV1 { index, ram, register_a, register_b, register_c, chain_base, epoch, seen } = state;
        if index > 0x7f {
            return Err("register index");
        }
        let c = Flags::from_bits(register_c).filter(|c| !c.contains(Flags::REQUEST)).ok_or("register C")?;
        if register_a & A_UIP != 0 {
            return Err("register A");
        }
        if !(-EPOCH_MAX..=EPOCH_MAX).contains(&epoch) {
            return Err("time");
        }
        let b = Control::from_bits_retain(register_b);
        Ok((Self { ram, a: register_a, b, c, chain_base, epoch, seen }, index))
    }
}

/// The request bit, if an enabled flag is up.
fn request(flags: Flags, control: Control) -> Flags {
    if flags.bits() & control.bits() & !Flags::REQUEST.bits() == 0 { Flags::empty() } else { Flags::REQUEST }
}

fn is_time(index: u8) -> bool {
    matches!(index, SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY)
}

/// Ticks of the 32,768 Hz tap at a position of the chain.
fn chain_ticks(position: u64) -> u64 {
    (u128::from(position) * u128::from(CHAIN_HZ) / u128::from(SECOND)) as u64
}
