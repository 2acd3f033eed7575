//! `SimDisk`: a system disk in memory that crashes, fails and lies as it is told.
//!
//! What is written is live at once and durable after a good sync; `history` keeps all of it, so that one run gives
//! every crash. `faults` is what goes wrong, `state` what an operation does.

mod faults;
mod history;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use faults::{SimAction, SimFault, SimLie, SimOperation, SimWhen};
pub use history::{SimHistory, SimMoment};

use super::{Disk, Exchange, Target, TargetError};
use crate::range::ByteRange;
use crate::verify::VerifiedChunk;
use history::{Bytes, Medium, Model, Place};
use state::{Orders, State};

type Hook = Arc<dyn Fn(SimOperation, SimWhen) + Send + Sync>;

/// A simulated system disk, for tests; clones are the same disk.
///
/// A rebuild runs on it as on a real one. All that was ever written stays in memory, for `history`.
///
/// ```
/// use reimage::{CancelToken, Credential, Promise, Request, SimDisk};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let here = |name: &str| folder.path().join(name);
/// std::fs::write(here("debian.raw"), vec![7; 1 << 20])?;
/// let disk = SimDisk::device(vec![0xaa; 2 << 20], 512).named("disk-1");
/// let mut request = Request::new(here("debian.raw"), "");
/// request.options.state_dir = here("state");
///
/// let own = (Box::new(disk.clone()) as _, Promise::NobodyElseUsesIt);
/// let plan = reimage::plan_onto(&request, &Credential::keep_image(), own, &())?;
/// reimage::rebuild(plan, &(), &CancelToken::new())?;
/// assert_eq!(disk.durable()[..1 << 20], vec![7; 1 << 20]);
///
/// // The power cut after the fifth operation, with all that the disk had been told by then.
/// let crashed = disk.history().after(5).crash(1);
/// assert!(crashed.contents().starts_with(b"reimage: unfinished rebuild\n"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

struct Shared {
    /// Held by the operation whose turn it is: they come one after the other.
    turn: Mutex<()>,
    state: Mutex<State>,
    hook: Mutex<Option<Hook>>,
}

impl SimDisk {
    /// A block device that holds `contents`, whole sectors of `sector_size` bytes.
    ///
    /// # Panics
    ///
    /// If there is half a sector.
    #[must_use]
    pub fn device(contents: impl Into<Arc<Vec<u8>>>, sector_size: u32) -> Self {
        let contents = contents.into();
        let size = contents.len() as u64;
        assert!(size.is_multiple_of(u64::from(sector_size)), "a device consists of whole sectors");
        Self::of(Model { medium: Medium::Device, size, sector_size, name: None }, contents)
    }

    /// A file that is written in place; blocks of zeroes in `contents` are holes.
    #[must_use]
    pub fn file_in_place(contents: impl Into<Arc<Vec<u8>>>) -> Self {
        let contents = contents.into();
        let size = contents.len() as u64;
        Self::of(Model { medium: Medium::FileInPlace, size, sector_size: 1, name: None }, contents)
    }

    /// A file that holds `old` and is replaced by a new one of `size` bytes.
    #[must_use]
    pub fn file_replaced(old: impl Into<Arc<Vec<u8>>>, size: u64) -> Self {
        Self::of(Model { medium: Medium::FileReplaced, size, sector_size: 1, name: None }, old.into())
    }

    /// The same, to be grown to `size` bytes by `take_size`.
    #[must_use]
    pub fn grown_to(self, size: u64) -> Self {
        let state = self.state();
        let model = Model { size: size.max(state.model.size), ..state.model.clone() };
        Self::of(model, Arc::clone(state.contents()))
    }

    /// The same, with an identity by which a later run knows the disk again; a crash leaves it.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.state().model.name = Some(name.to_owned());
        self
    }

    fn of(model: Model, contents: Arc<Vec<u8>>) -> Self {
        let state = Mutex::new(State::new(model, contents));
        Self { shared: Arc::new(Shared { turn: Mutex::new(()), state, hook: Mutex::new(None) }) }
    }

    /// What chance does in faults and lies: which bit flips, what a failed sync loses.
    pub fn set_rng_seed(&self, rng_seed: u64) {
        self.state().rng_seed = rng_seed;
    }

    /// Makes operation `number` fail.
    pub fn fail(&self, number: usize, fault: SimFault) {
        self.state().orders(number).fault = Some(fault);
    }

    /// Makes operation `number` say that all is well when it is not; a lie that does not fit it tells nothing.
    pub fn lie(&self, number: usize, lie: SimLie) {
        self.state().orders(number).lie = Some(lie);
    }

    /// Makes every write and every zeroing that touches `range` say that all is well when it is not.
    pub fn lie_always(&self, range: ByteRange, lie: SimLie) {
        self.state().bad_places.push((range, lie));
    }

    /// Makes operation `number` take at least `time`; the others wait for it.
    pub fn slow(&self, number: usize, time: Duration) {
        self.state().orders(number).slow = Some(time);
    }

    /// Calls `hook` before and after every operation, on the thread that asks for it.
    ///
    /// Threads of a rebuild can open no file, so a hook that wants to look at one asks another thread. A hook may ask
    /// the disk for its contents, its log and its history, and must not read or write it.
    pub fn on_operation(&self, hook: impl Fn(SimOperation, SimWhen) + Send + Sync + 'static) {
        *lock(&self.shared.hook) = Some(Arc::new(hook));
    }

    /// How many operations have begun.
    #[must_use]
    pub fn operations(&self) -> usize {
        self.state().log.len()
    }

    /// The operations that have begun, in their order.
    #[must_use]
    pub fn log(&self) -> Vec<SimOperation> {
        self.state().log.clone()
    }

    /// What bears the disk's name, as it reads now.
    #[must_use]
    pub fn contents(&self) -> Arc<Vec<u8>> {
        Arc::clone(self.state().contents())
    }

    /// What bears the disk's name and is durable: what a power cut leaves when nothing that is on its way arrives.
    #[must_use]
    pub fn durable(&self) -> Arc<Vec<u8>> {
        self.crash(0).contents()
    }

    /// The new file that did not get the disk's place and stays to be looked at, if there is one.
    #[must_use]
    pub fn preserved(&self) -> Option<Arc<Vec<u8>>> {
        self.state().preserved.clone()
    }

    /// Everything that happened so far.
    #[must_use]
    pub fn history(&self) -> SimHistory {
        self.state().history()
    }

    /// The disk that a power cut leaves now; see [`SimMoment::crash`].
    #[must_use]
    pub fn crash(&self, rng_seed: u64) -> Self {
        let state = self.state();
        let left = state.stored.clone().after_a_crash(&state.model, rng_seed);
        Self::of(state.model.clone(), left)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    fn operate<T>(
        &self,
        (action, range): (SimAction, Option<ByteRange>),
        act: impl FnOnce(&mut State, Orders) -> std::io::Result<T>,
    ) -> Result<T, TargetError> {
        let _turn = lock(&self.shared.turn);
        let (operation, orders) = self.state().begin(action, range);
        let hook = lock(&self.shared.hook).clone();
        let tell = |when| {
            if let Some(hook) = &hook {
                hook(operation, when);
            }
        };
        tell(SimWhen::Before);
        if let Some(time) = orders.slow {
            std::thread::sleep(time);
        }
        let done = act(&mut self.state(), orders);
        tell(SimWhen::After);
        done.map_err(|error| TargetError::new(action.doing(), range, error))
    }
}

/// A hook that panics has failed its test already; the disk stays usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("SimDisk")
            .field("model", &state.model)
            .field("operations", &state.log.len())
            .finish_non_exhaustive()
    }
}

impl Disk for SimDisk {
    fn size(&self) -> u64 {
        self.state().model.size
    }

    fn sector_size(&self) -> u32 {
        self.state().model.sector_size
    }

    fn read(&self, range: ByteRange, buffer: &mut [u8]) -> Result<(), TargetError> {
        self.operate((SimAction::Read, Some(range)), |state, orders| state.read(range, buffer, orders))
    }

    fn next_data(&self, offset: u64) -> Result<Option<ByteRange>, TargetError> {
        Ok(self.state().next_data(offset))
    }
}

impl Target for SimDisk {
    fn identity(&self) -> Option<String> {
        self.state().model.name.clone()
    }

    fn exchange(&self) -> Option<Box<dyn Exchange>> {
        let mut state = self.state();
        (state.model.medium == Medium::FileReplaced).then(|| {
            state.begin_new_file();
            Box::new(SimExchange(self.clone())) as _
        })
    }

    fn is_new(&self) -> bool {
        self.state().model.medium == Medium::FileReplaced
    }

    fn write(&self, chunk: &VerifiedChunk) -> Result<(), TargetError> {
        let (range, bytes) = (chunk.range(), chunk.bytes());
        let padded =
            ByteRange::between(range.start(), range.end().next_multiple_of(u64::from(self.sector_size())));
        let padding = std::iter::repeat_n(0, history::to_index(padded.end() - range.end()));
        let bytes = match padded == range {
            true => Bytes::Data(bytes.into()),
            false => Bytes::Data(bytes.iter().copied().chain(padding).collect()),
        };
        let stored = (padded, bytes);
        self.operate((SimAction::Write, Some(range)), |state, orders| state.store(stored, orders))
    }

    fn write_zeroes(&self, range: ByteRange) -> Result<(), TargetError> {
        let sector = u64::from(self.sector_size());
        let is_whole = range.start().is_multiple_of(sector) && range.end().is_multiple_of(sector);
        assert!(is_whole, "a disk is zeroed in whole sectors: {range}");
        let stored = (range, Bytes::Zeroes);
        self.operate((SimAction::Zero, Some(range)), |state, orders| state.store(stored, orders))
    }

    fn sync(&self) -> Result<(), TargetError> {
        self.operate((SimAction::Sync, None), State::sync)
    }

    fn take_size(&self) -> Result<(), TargetError> {
        if self.state().has_its_size() {
            return Ok(());
        }
        self.operate((SimAction::Resize, None), State::grow)
    }
}

/// The new file of a simulated disk that is replaced.
struct SimExchange(SimDisk);

impl Exchange for SimExchange {
    fn publish(&mut self) -> Result<(), TargetError> {
        self.0.operate((SimAction::Publish, None), State::publish)
    }

    fn has_its_place(&self) -> bool {
        self.0.state().stored.place != Place::Waiting
    }

    fn settle(&mut self) -> Result<(), TargetError> {
        self.0.operate((SimAction::Settle, None), State::settle)
    }

    fn preserve(&mut self, journal: &str) -> Result<Option<PathBuf>, TargetError> {
        self.0.operate((SimAction::Preserve, None), State::preserve)?;
        Ok(Some(format!("simulated.{journal}").into()))
    }
}
