//! A pool of threads that can open nothing, fed through bounded queues.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, TrySendError};
use std::sync::{Arc, Mutex};

use super::pack::Press;
use super::patience::{Patience, Waited};
use super::{CopyError, Watch};
use crate::image::{Decoder, Pulse};
use crate::sys::aligned::AlignedBuffer;
use crate::sys::landlock::{self, Sandbox};
use crate::verify::CHUNK_LEN;

/// More threads than this gain nothing on one disk and cost memory: a buffer and a decoder each.
const MOST_THREADS: usize = 12;

/// Threads of our own, under Landlock without any rule.
pub(crate) struct Pool {
    threads: rayon::ThreadPool,
    sandbox: Sandbox,
    /// Counts what the threads get done within their jobs.
    beats: Arc<AtomicU64>,
}

/// What there is to do for a thread that is free.
pub(crate) enum Next<J> {
    Job(J),
    /// Nothing before a job that is under way has been done.
    Later,
    /// Nothing any more.
    End,
}

/// What one thread keeps from job to job.
#[derive(Default)]
pub(crate) struct Worker {
    pub(crate) decoder: Decoder,
    pub(super) press: Option<Press>,
    buffer: Option<AlignedBuffer>,
    second: Option<AlignedBuffer>,
    beats: Arc<AtomicU64>,
}

impl Worker {
    /// Shows that a long job goes on.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// A buffer of a chunk's size; content is whatever the last job left.
    pub(crate) fn take_buffer(&mut self) -> Result<AlignedBuffer, CopyError> {
        self.buffer.take().map_or_else(new_buffer, Ok)
    }

    /// The same for a disk of which all is read past the page cache.
    pub(crate) fn take_huge_buffer(&mut self) -> Result<AlignedBuffer, CopyError> {
        let make = || AlignedBuffer::in_a_huge_page(CHUNK_LEN).map_err(CopyError::Memory);
        self.buffer.take().map_or_else(make, Ok)
    }

    /// A second one, where two things are compared.
    pub(crate) fn take_second(&mut self) -> Result<AlignedBuffer, CopyError> {
        self.second.take().map_or_else(new_buffer, Ok)
    }

    /// Keeps the buffer for the next job.
    pub(crate) fn give_back(&mut self, buffer: AlignedBuffer) {
        self.buffer = Some(buffer);
    }

    /// Keeps the second one.
    pub(crate) fn give_back_second(&mut self, buffer: AlignedBuffer) {
        self.second = Some(buffer);
    }
}

fn new_buffer() -> Result<AlignedBuffer, CopyError> {
    AlignedBuffer::zeroed(CHUNK_LEN).map_err(CopyError::Memory)
}

impl Pool {
    /// Starts the threads; by default twice the processors, because each waits for a disk half of its time.
    pub(crate) fn start(threads: Option<NonZeroUsize>) -> io::Result<Self> {
        Self::start_at_most(threads, MOST_THREADS)
    }

    /// The same, where more threads than `most` would take too much memory.
    pub(crate) fn start_at_most(threads: Option<NonZeroUsize>, most: usize) -> io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let count = threads.map_or(processors * 2, NonZeroUsize::get).min(MOST_THREADS).min(most);
        let failed = Arc::new(AtomicBool::new(false));
        let unconfined = Arc::new(AtomicBool::new(false));
        let (failure, lack) = (Arc::clone(&failed), Arc::clone(&unconfined));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("reimage-{index}"))
            .start_handler(move |_| match landlock::forbid_opening() {
                Ok(Sandbox::Landlock) => {}
                Ok(Sandbox::None) => lack.store(true, Ordering::SeqCst),
                Err(_) => failure.store(true, Ordering::SeqCst),
            })
            .build()
            .map_err(io::Error::other)?;
        // Every thread answers once, so the flags are final.
        pool.broadcast(|_| ());
        if failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("a thread could not be kept from opening files (Landlock)"));
        }
        let sandbox = if unconfined.load(Ordering::SeqCst) { Sandbox::None } else { Sandbox::Landlock };
        Ok(Self { threads: pool, sandbox, beats: Arc::default() })
    }

    /// What keeps the threads from opening files.
    pub(crate) fn sandbox(&self) -> Sandbox {
        self.sandbox
    }

    /// How many threads there are.
    pub(crate) fn thread_count(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `work` on every job that `next` gives and hands each result to `done`, on this thread.
    ///
    /// At most two jobs a thread wait; after the first error only the jobs under way are finished.
    pub(crate) fn run<J: Send, R: Send>(
        &self,
        mut next: impl FnMut() -> Result<Option<J>, CopyError>,
        work: impl Fn(&mut Worker, J) -> Result<R, CopyError> + Sync,
        done: impl FnMut(R) -> Result<(), CopyError>,
        watch: &Watch<'_>,
    ) -> Result<(), CopyError> {
        let next = || Ok(next()?.map_or(Next::End, Next::Job));
        self.run_paced(next, work, done, watch)
    }

    /// The same where `next` may have to wait for what is under way.
    pub(crate) fn run_paced<J: Send, R: Send>(
        &self,
        mut next: impl FnMut() -> Result<Next<J>, CopyError>,
        work: impl Fn(&mut Worker, J) -> Result<R, CopyError> + Sync,
        mut done: impl FnMut(R) -> Result<(), CopyError>,
        watch: &Watch<'_>,
    ) -> Result<(), CopyError> {
        let count = self.thread_count();
        let (jobs, queue) = mpsc::sync_channel::<J>(2 * count);
        let queue = Mutex::new(queue);
        let (report, reports) = mpsc::channel::<Result<R, CopyError>>();
        let (stopped, panicked) = (Arc::new(AtomicBool::new(false)), AtomicBool::new(false));
        self.threads.in_place_scope(|scope| {
            for _ in 0..count {
                let (queue, work, report) = (&queue, &work, report.clone());
                let (beats, stopped) = (Arc::clone(&self.beats), Arc::clone(&stopped));
                let pulse = Pulse { beats: Arc::clone(&beats), stopped: Arc::clone(&stopped) };
                let (decoder, alarm) = (Decoder::with_pulse(pulse), Alarm(&panicked));
                let mut worker = Worker { decoder, beats, ..Worker::default() };
                scope.spawn(move |_| {
                    let _alarm = alarm;
                    loop {
                        let job = queue.lock().expect("no thread panics with the queue").recv();
                        let Ok(job) = job else { break };
                        if stopped.load(Ordering::Relaxed) {
                            continue;
                        }
                        if report.send(work(&mut worker, job)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(report);
            // The queue closes when `feed` returns, so that every thread comes to its end.
            let reports = Patience::new(&reports, &self.beats, watch);
            let fed = feed((jobs, &panicked), &mut next, &mut done, reports);
            stopped.store(fed.is_err(), Ordering::Relaxed);
            fed
        })
    }
}

/// Tells of a thread that panics: what it was doing never comes back.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

fn feed<J, R>(
    (jobs, panicked): (mpsc::SyncSender<J>, &AtomicBool),
    next: &mut impl FnMut() -> Result<Next<J>, CopyError>,
    done: &mut impl FnMut(R) -> Result<(), CopyError>,
    mut reports: Patience<'_, R>,
) -> Result<(), CopyError> {
    loop {
        let mut waiting = match next()? {
            Next::Job(job) => Some(job),
            // The scope that waits for the threads goes on with the panic.
            Next::Later if panicked.load(Ordering::SeqCst) => return Ok(()),
            Next::Later => match reports.wait()? {
                Waited::Report(report) => {
                    done(report)?;
                    None
                }
                Waited::Nothing => None,
                Waited::Gone => return Ok(()),
            },
            Next::End => break,
        };
        while let Some(job) = waiting.take() {
            match jobs.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) => {
                    waiting = Some(job);
                    match reports.wait()? {
                        Waited::Report(report) => done(report)?,
                        Waited::Nothing => {}
                        // Every thread has panicked; the scope that waits for them goes on with that.
                        Waited::Gone => return Ok(()),
                    }
                }
                Err(TrySendError::Disconnected(_)) => unreachable!("the threads live as long as the queue"),
            }
        }
        while let Some(report) = reports.at_once()? {
            done(report)?;
        }
    }
    drop(jobs);
    loop {
        match reports.wait()? {
            Waited::Report(report) => done(report)?,
            Waited::Nothing => {}
            Waited::Gone => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::observe::{CancelToken, Event, Observer, Phase};

    fn pool() -> Pool {
        Pool::start(NonZeroUsize::new(3)).unwrap()
    }

    /// Runs it with nobody watching.
    fn run<R: Send>(
        count: usize,
        work: impl Fn(&mut Worker, usize) -> Result<R, CopyError> + Sync,
        done: impl FnMut(R) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let cancel = CancelToken::new();
        pool().run(up_to(count), work, done, &watch(&(), &cancel, None))
    }

    fn watch<'a>(
        observer: &'a dyn Observer,
        cancel: &'a CancelToken,
        stall_timeout: Option<Duration>,
    ) -> Watch<'a> {
        Watch { observer, cancel, phase: Phase::Copy, bytes_total: 0, stall_timeout }
    }

    fn up_to(count: usize) -> impl FnMut() -> Result<Option<usize>, CopyError> {
        let mut jobs = 0..count;
        move || Ok(jobs.next())
    }

    #[test]
    fn every_job_is_done_once() {
        let mut sum = 0;
        let add = |job| {
            sum += job;
            Ok(())
        };
        run(1000, |_, job| Ok(job), add).unwrap();
        assert_eq!(sum, 999 * 1000 / 2);
    }

    #[test]
    fn a_job_that_must_wait_for_what_is_under_way_is_asked_for_again() {
        let (given, done) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let next = || match (given.get(), done.get()) {
            (100, _) => Ok(Next::End),
            (given, done) if given > done => Ok(Next::Later),
            _ => Ok(Next::Job(given.replace(given.get() + 1))),
        };
        let count = |job| {
            assert_eq!(job, done.get(), "one after the other");
            done.set(done.get() + 1);
            Ok(())
        };
        let cancel = CancelToken::new();
        pool().run_paced(next, |_, job| Ok(job), count, &watch(&(), &cancel, None)).unwrap();
        assert_eq!(done.get(), 100);
    }

    #[test]
    fn an_error_ends_the_run_and_the_jobs_that_wait_are_dropped() {
        let begun = AtomicUsize::new(0);
        let work = |_: &mut Worker, job| {
            begun.fetch_add(1, Ordering::SeqCst);
            if job == 10 { Err(CopyError::Cancelled) } else { Ok(()) }
        };
        let ended = run(1_000_000, work, |()| Ok(()));
        assert!(matches!(ended, Err(CopyError::Cancelled)));
        assert!(begun.load(Ordering::SeqCst) < 10_000);
    }

    #[test]
    fn a_cancel_is_seen_although_every_thread_waits_for_the_disk() {
        let cancel = CancelToken::new();
        let began = Instant::now();
        let work = |_: &mut Worker, _| {
            std::thread::sleep(Duration::from_millis(300));
            Ok(())
        };
        let later = cancel.clone();
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            later.cancel();
        });
        let ended = pool().run(up_to(1000), work, |()| Ok(()), &watch(&(), &cancel, None));
        canceller.join().unwrap();
        assert!(matches!(ended, Err(CopyError::Cancelled)));
        assert!(began.elapsed() < Duration::from_secs(5), "only the jobs under way were waited for");
    }

    #[test]
    fn a_disk_that_does_nothing_ends_the_run_where_a_limit_is_set() {
        let told = std::sync::Mutex::new(Vec::new());
        let observer = |event: &Event| told.lock().unwrap().push(event.clone());
        let work = |_: &mut Worker, _| {
            std::thread::sleep(Duration::from_millis(500));
            Ok(())
        };
        let (cancel, limit) = (CancelToken::new(), Some(Duration::from_millis(200)));
        let ended = pool().run(up_to(10), work, |()| Ok(()), &watch(&observer, &cancel, limit));
        assert!(matches!(ended, Err(CopyError::Stalled { .. })));
        assert!(matches!(told.lock().unwrap().as_slice(), [Event::Stalled { phase: Phase::Copy, .. }]));
    }

    #[test]
    fn panicking_threads_end_the_run_instead_of_hanging_it() {
        let work = |_: &mut Worker, _| -> Result<(), CopyError> { panic!("a fault of ours") };
        let panics = || run(1000, work, |()| Ok(()));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    }

    #[test]
    fn one_thread_that_panics_ends_a_run_that_waits_for_what_it_did() {
        let given = std::cell::Cell::new(0);
        let next = || match given.replace(given.get() + 1) {
            0 => Ok(Next::Job(())),
            _ => Ok(Next::Later),
        };
        let work = |_: &mut Worker, ()| -> Result<(), CopyError> { panic!("a fault of ours") };
        let cancel = CancelToken::new();
        let waits = || pool().run_paced(next, work, |()| Ok(()), &watch(&(), &cancel, None));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(waits)).is_err());
    }

    #[test]
    #[ignore = "needs a kernel with Landlock"]
    fn the_threads_of_the_pool_open_nothing() {
        let open = |_: &mut Worker, _| Ok(std::fs::File::open("/proc/self/status").is_ok());
        let check = |opened: bool| {
            assert!(!opened, "a thread of the pool opened a file");
            Ok(())
        };
        run(20, open, check).unwrap();
    }
}
