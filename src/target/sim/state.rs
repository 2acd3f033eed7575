//! What a simulated disk holds now, and what each operation makes of it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::faults::{Random, SimAction, SimFault, SimLie, SimOperation};
use super::history::{Bytes, Change, Happening, Medium, Model, Place, SimHistory, Stored, place, to_index};
use crate::range::ByteRange;

/// A file system tells holes from data in blocks of this size.
const BLOCK: u64 = 4096;

/// What was ordered of one operation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    pub(super) fault: Option<SimFault>,
    pub(super) lie: Option<SimLie>,
    pub(super) slow: Option<Duration>,
}

pub(super) struct State {
    pub(super) model: Model,
    pub(super) stored: Stored,
    /// What a read gives: the durable bytes and all that was written since.
    live: Arc<Vec<u8>>,
    /// The blocks that are no holes; none are kept of a device.
    allocated: Vec<bool>,
    first: Arc<Vec<u8>>,
    happenings: Vec<(usize, Happening)>,
    pub(super) log: Vec<SimOperation>,
    orders: HashMap<usize, Orders>,
    /// Where every change goes wrong, and how.
    pub(super) bad_places: Vec<(ByteRange, SimLie)>,
    /// The new file that did not get its place and stays.
    pub(super) preserved: Option<Arc<Vec<u8>>>,
    pub(super) rng_seed: u64,
}

impl State {
    pub(super) fn new(model: Model, first: Arc<Vec<u8>>) -> Self {
        let stored = Stored::new(&model, Arc::clone(&first));
        let mut state = Self {
            model,
            live: Arc::clone(&stored.durable),
            stored,
            allocated: Vec::new(),
            first,
            happenings: Vec::new(),
            log: Vec::new(),
            orders: HashMap::new(),
            bad_places: Vec::new(),
            preserved: None,
            rng_seed: 0,
        };
        state.find_holes();
        state
    }

    fn find_holes(&mut self) {
        if self.model.medium != Medium::Device {
            let zeroes = vec![0; to_index(BLOCK)];
            let blocks = self.live.chunks(zeroes.len());
            self.allocated = blocks.map(|block| block != &zeroes[..block.len()]).collect();
        }
    }

    pub(super) fn orders(&mut self, number: usize) -> &mut Orders {
        self.orders.entry(number).or_default()
    }

    /// Numbers an operation.
    pub(super) fn begin(&mut self, action: SimAction, range: Option<ByteRange>) -> (SimOperation, Orders) {
        let operation = SimOperation { number: self.log.len() + 1, action, range };
        self.log.push(operation);
        let mut orders = self.orders.remove(&operation.number).unwrap_or_default();
        if matches!(action, SimAction::Write | SimAction::Zero) {
            let touches = |place: &ByteRange| range.is_some_and(|range| range.intersection(*place).is_some());
            let bad = self.bad_places.iter().find(|(place, _)| touches(place));
            orders.lie = orders.lie.or(bad.map(|(_, lie)| *lie));
        }
        (operation, orders)
    }

    pub(super) fn history(&self) -> SimHistory {
        SimHistory {
            model: self.model.clone(),
            first: Arc::clone(&self.first),
            happenings: self.happenings.clone(),
            log: self.log.clone(),
        }
    }

    pub(super) fn contents(&self) -> &Arc<Vec<u8>> {
        match (self.model.medium, self.stored.place) {
            (Medium::FileReplaced, Place::Waiting) => &self.stored.old,
            _ => &self.live,
        }
    }

    pub(super) fn has_its_size(&self) -> bool {
        self.live.len() as u64 >= self.model.size
    }

    pub(super) fn begin_new_file(&mut self) {
        if self.stored.place != Place::Waiting {
            self.happen(Happening::Synced);
        }
        self.happen(Happening::Begun);
        self.live = Arc::clone(&self.stored.durable);
        self.find_holes();
    }

    fn random(&self) -> Random {
        Random::new(self.rng_seed.rotate_left(17) ^ self.log.len() as u64)
    }

    fn happen(&mut self, happening: Happening) {
        self.stored.happen(&happening);
        self.happenings.push((self.log.len(), happening));
    }

    pub(super) fn read(&self, range: ByteRange, buffer: &mut [u8], orders: Orders) -> io::Result<()> {
        let from = match orders.lie {
            Some(SimLie::Stale) => self.before_the_last_write(range),
            _ => Arc::clone(&self.live),
        };
        let bytes = from.get(place(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = match orders.fault {
            None => bytes,
            Some(SimFault::Short) => &bytes[..bytes.len() / 2],
            Some(fault) => return Err(fault.error(SimAction::Read)),
        };
        buffer[..bytes.len()].copy_from_slice(bytes);
        orders.fault.map_or(Ok(()), |fault| Err(fault.error(SimAction::Read)))
    }

    /// What the disk held before the last change of any byte of `range`.
    fn before_the_last_write(&self, range: ByteRange) -> Arc<Vec<u8>> {
        let changes = |happening: &Happening| match happening {
            Happening::Changed(Change::Stored(changed, _)) => changed.intersection(range).is_some(),
            _ => false,
        };
        let Some(last) = self.happenings.iter().rposition(|(_, happening)| changes(happening)) else {
            return Arc::clone(&self.live);
        };
        let mut stored = Stored::new(&self.model, Arc::clone(&self.first));
        for (_, happening) in &self.happenings[..last] {
            stored.happen(happening);
        }
        stored.happen(&Happening::Synced);
        Arc::make_mut(&mut stored.durable).resize(self.live.len(), 0);
        stored.durable
    }

    pub(super) fn store(&mut self, (range, bytes): (ByteRange, Bytes), orders: Orders) -> io::Result<()> {
        let action = match bytes {
            Bytes::Zeroes => SimAction::Zero,
            Bytes::Data(_) => SimAction::Write,
        };
        if range.end() > self.model.size {
            return Err(SimFault::Enospc.error(action));
        }
        let sector = u64::from(self.model.sector_size).max(512);
        let stored = match (orders.fault, orders.lie) {
            (None, None) => Some((range, bytes)),
            (None, Some(lie)) => lie.spoil((range, bytes), (sector, self.model.size), &mut self.random()),
            (Some(SimFault::Short), _) => {
                let half = range.len() / 2 / sector * sector;
                Some((ByteRange::new(range.start(), half), bytes.part(0, half)))
            }
            (Some(_), _) => None,
        };
        if let Some((range, bytes)) = stored.filter(|(range, _)| !range.is_empty()) {
            self.change(range, bytes);
        }
        orders.fault.map_or(Ok(()), |fault| Err(fault.error(action)))
    }

    fn change(&mut self, range: ByteRange, bytes: Bytes) {
        let is_data = matches!(bytes, Bytes::Data(_));
        if self.model.medium != Medium::Device {
            let last = to_index(range.end().div_ceil(BLOCK));
            self.allocated.resize(last.max(self.allocated.len()), false);
            for (at, allocated) in self.allocated.iter_mut().enumerate().take(last) {
                let block = ByteRange::new(at as u64 * BLOCK, BLOCK);
                if range.intersection(block) == Some(block) {
                    *allocated = is_data;
                } else if is_data && range.intersection(block).is_some() {
                    *allocated = true;
                }
            }
        }
        let change = Change::Stored(range, bytes);
        change.apply(Arc::make_mut(&mut self.live));
        self.happen(Happening::Changed(change));
    }

    /// The first run of blocks at or behind `offset` that are no holes.
    pub(super) fn next_data(&self, offset: u64) -> Option<ByteRange> {
        let size = self.model.size;
        if self.model.medium == Medium::Device {
            return Some(ByteRange::between(offset.min(size), size)).filter(|rest| !rest.is_empty());
        }
        let first = to_index(offset / BLOCK);
        let mut blocks = self.allocated.iter().enumerate().skip(first);
        let (start, _) = blocks.find(|(_, allocated)| **allocated)?;
        let end = blocks.find(|(_, allocated)| !**allocated).map_or(self.allocated.len(), |(at, _)| at);
        let start = (start as u64 * BLOCK).max(offset);
        Some(ByteRange::between(start, (end as u64 * BLOCK).min(size).max(start)))
            .filter(|run| !run.is_empty())
    }

    pub(super) fn sync(&mut self, orders: Orders) -> io::Result<()> {
        let Some(fault) = orders.fault else {
            self.happen(Happening::Synced);
            return Ok(());
        };
        let mut random = self.random();
        let kept = self.stored.pending.iter().map(|_| random.coin()).collect();
        self.happen(Happening::SyncFailed { kept });
        // A disk with a cache of its own goes on giving what it has lost.
        if random.coin() {
            self.live = Arc::clone(&self.stored.durable);
            for change in &self.stored.pending {
                change.apply(Arc::make_mut(&mut self.live));
            }
            self.allocated.fill(true);
        }
        Err(fault.error(SimAction::Sync))
    }

    pub(super) fn grow(&mut self, orders: Orders) -> io::Result<()> {
        if let Some(fault) = orders.fault {
            return Err(fault.error(SimAction::Resize));
        }
        let change = Change::Grown(self.model.size);
        change.apply(Arc::make_mut(&mut self.live));
        self.happen(Happening::Changed(change));
        Ok(())
    }

    pub(super) fn publish(&mut self, orders: Orders) -> io::Result<()> {
        if matches!(orders.fault, None | Some(SimFault::Short)) {
            self.happen(Happening::Exchanged);
        }
        orders.fault.map_or(Ok(()), |fault| Err(fault.error(SimAction::Publish)))
    }

    pub(super) fn settle(&mut self, orders: Orders) -> io::Result<()> {
        if matches!(orders.fault, None | Some(SimFault::Short)) {
            self.happen(Happening::Settled);
        }
        orders.fault.map_or(Ok(()), |fault| Err(fault.error(SimAction::Settle)))
    }
    pub(super) fn preserve(&mut self, orders: Orders) -> io::Result<()> {
        if let Some(fault) = orders.fault {
            return Err(fault.error(SimAction::Preserve));
        }
        self.preserved = Some(Arc::clone(&self.live));
        Ok(())
    }
}
