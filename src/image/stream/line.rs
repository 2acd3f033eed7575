//! `Line`: a lock that is had in the order in which it was asked for.
//!
//! The threads of a copy ask for a stream's chunks nearly in order. With a lock that favours whoever is awake, one of
//! them could wait until what it wants has been forgotten, and the stream would be decoded once more for it.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(super) struct Line<T> {
    tickets: Mutex<Tickets>,
    moved: Condvar,
    value: Mutex<T>,
}

struct Tickets {
    next: u64,
    serving: u64,
}

impl<T> Line<T> {
    pub(super) fn new(value: T) -> Self {
        let tickets = Mutex::new(Tickets { next: 0, serving: 0 });
        Self { tickets, moved: Condvar::new(), value: Mutex::new(value) }
    }

    /// Waits until all who came before have left.
    pub(super) fn enter(&self) -> Turn<'_, T> {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let own = tickets.next;
        tickets.next += 1;
        while tickets.serving != own {
            tickets = self.moved.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        drop(tickets);
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { line: self, value: Some(value) }
    }
}

/// The value, as long as it is one's turn.
pub(super) struct Turn<'a, T> {
    line: &'a Line<T>,
    value: Option<MutexGuard<'a, T>>,
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is there until the turn ends")
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is there until the turn ends")
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        self.value = None;
        self.line.tickets.lock().unwrap_or_else(PoisonError::into_inner).serving += 1;
        self.line.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_first_comes_first() {
        let line = Line::new(Vec::new());
        std::thread::scope(|scope| {
            let first = line.enter();
            for number in 1..=20_u64 {
                let line = &line;
                scope.spawn(move || line.enter().push(number));
                while line.tickets.lock().unwrap().next <= number {
                    std::thread::yield_now();
                }
            }
            drop(first);
        });
        assert_eq!(*line.enter(), (1..=20).collect::<Vec<_>>());
    }
}
