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
        let mut queue = self.lock.queue();
        queue.requests.retain(|request| request.ticket != self.ticket);
        if queue.waiting > 0 {
            self.lock.released.notify_all();
        }
    }
}
