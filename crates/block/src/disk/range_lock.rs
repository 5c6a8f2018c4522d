//! Locks on ranges of a disk: requests that only move data share, those that change mappings have their units alone.
//!
//! A request waits for every earlier one that it conflicts with, granted or not, so that nobody starves. A cluster is
//! freed only by a request that has it alone, so nobody has data in flight to a place that is given to others.

use std::sync::{Condvar, Mutex, MutexGuard};

#[derive(Debug)]
struct Request {
    ticket: u64,
    start: u64,
    end: u64,
    exclusive: bool,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    /// Held and waiting, in the order of their coming.
    requests: Vec<Request>,
    /// How many wait; nobody needs to be woken where it is 0.
    waiting: usize,
}

/// The lock of one node.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    queue: Mutex<Queue>,
    released: Condvar,
}

/// Holds a range until it is dropped.
#[derive(Debug)]
pub(crate) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    ticket: u64,
}

impl RangeLock {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Waits until nobody has part of `start..end` alone.
    pub(crate) fn shared(&self, start: u64, end: u64) -> RangeGuard<'_> {
        self.take(start, end, false)
    }

    /// Waits until nobody has part of `start..end`.
    pub(crate) fn exclusive(&self, start: u64, end: u64) -> RangeGuard<'_> {
        self.take(start, end, true)
    }

    /// Takes `start..end` with others, if nobody has part of it alone or waits for that. It is held until
    /// [`RangeLock::release`] of the ticket.
    pub(crate) fn try_shared(&self, start: u64, end: u64) -> Option<u64> {
        let mut queue = self.queue();
        let ticket = queue.next_ticket;
        if queue.blocked(ticket, start, end, false) {
            return None;
        }
        queue.next_ticket += 1;
        queue.requests.push(Request { ticket, start, end, exclusive: false });
        Some(ticket)
    }

    /// Gives back what a ticket stands for.
    pub(crate) fn release(&self, ticket: u64) {
        let mut queue = self.queue();
        queue.requests.retain(|request| request.ticket != ticket);
        if queue.waiting > 0 {
            self.released.notify_all();
        }
    }

    fn take(&self, start: u64, end: u64, exclusive: bool) -> RangeGuard<'_> {
        let mut queue = self.queue();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.requests.push(Request { ticket, start, end, exclusive });
        while queue.blocked(ticket, start, end, exclusive) {
            queue.waiting += 1;
            queue = self.released.wait(queue).unwrap_or_else(|poison| poison.into_inner());
            queue.waiting -= 1;
        }
        RangeGuard { lock: self, ticket }
    }
}

impl Queue {
    fn blocked(&self, ticket: u64, start: u64, end: u64, exclusive: bool) -> bool {
        self.requests
            .iter()
            .take_while(|other| other.ticket < ticket)
            .any(|other| (exclusive || other.exclusive) && start < other.end && other.start < end)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.lock.release(self.ticket);
    }
}
