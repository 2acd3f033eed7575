//! A pool of threads that can open nothing, fed through bounded queues.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::CopyError;
use crate::image::Decoder;
use crate::sys::aligned::AlignedBuffer;
use crate::sys::landlock::{self, Sandbox};
use crate::verify::CHUNK_LEN;

/// More threads than this gain nothing on one disk and cost memory: a buffer and a decoder each.
const MOST_THREADS: usize = 12;
/// How often the calling thread looks up when no thread has anything to say.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Threads of our own, under Landlock without any rule.
pub(crate) struct Pool {
    threads: rayon::ThreadPool,
    sandbox: Sandbox,
}

/// What one thread keeps from job to job.
#[derive(Default)]
pub(crate) struct Worker {
    pub(crate) decoder: Decoder,
    buffer: Option<AlignedBuffer>,
}

impl Worker {
    /// A buffer of a chunk's size; content is whatever the last job left.
    pub(crate) fn take_buffer(&mut self) -> Result<AlignedBuffer, CopyError> {
        self.buffer.take().map_or_else(|| AlignedBuffer::zeroed(CHUNK_LEN).map_err(CopyError::Memory), Ok)
    }

    /// Keeps the buffer for the next job.
    pub(crate) fn give_back(&mut self, buffer: AlignedBuffer) {
        self.buffer = Some(buffer);
    }
}

impl Pool {
    /// Starts the threads; by default twice the processors, because each waits for a disk half of its time.
    pub(crate) fn start(threads: Option<NonZeroUsize>) -> io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let count = threads.map_or(processors * 2, NonZeroUsize::get).min(MOST_THREADS);
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
        Ok(Self { threads: pool, sandbox })
    }

    /// What keeps the threads from opening files.
    pub(crate) fn sandbox(&self) -> Sandbox {
        self.sandbox
    }

    /// Runs `work` on every job that `next` gives and hands each result to `done`, on this thread.
    ///
    /// At most two jobs a thread wait; after the first error only the jobs under way are finished.
    pub(crate) fn run<J: Send, R: Send>(
        &self,
        mut next: impl FnMut() -> Result<Option<J>, CopyError>,
        work: impl Fn(&mut Worker, J) -> Result<R, CopyError> + Sync,
        mut done: impl FnMut(R) -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let count = self.threads.current_num_threads();
        let (jobs, queue) = mpsc::sync_channel::<J>(2 * count);
        let queue = Mutex::new(queue);
        let (report, reports) = mpsc::channel::<Result<R, CopyError>>();
        let stopped = AtomicBool::new(false);
        self.threads.in_place_scope(|scope| {
            for _ in 0..count {
                let (queue, work, report, stopped) = (&queue, &work, report.clone(), &stopped);
                scope.spawn(move |_| {
                    let mut worker = Worker::default();
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
            let fed = feed(jobs, &reports, &mut next, &mut done);
            stopped.store(fed.is_err(), Ordering::Relaxed);
            fed
        })
    }
}

fn feed<J, R>(
    jobs: mpsc::SyncSender<J>,
    reports: &mpsc::Receiver<Result<R, CopyError>>,
    next: &mut impl FnMut() -> Result<Option<J>, CopyError>,
    done: &mut impl FnMut(R) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    while let Some(job) = next()? {
        let mut waiting = Some(job);
        while let Some(job) = waiting.take() {
            match jobs.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) => {
                    waiting = Some(job);
                    match reports.recv_timeout(LOOK_UP) {
                        Ok(result) => done(result?)?,
                        Err(RecvTimeoutError::Timeout) => {}
                        // Every thread has panicked; the scope that waits for them goes on with that.
                        Err(RecvTimeoutError::Disconnected) => return Ok(()),
                    }
                }
                Err(TrySendError::Disconnected(_)) => unreachable!("the threads live as long as the queue"),
            }
        }
        while let Ok(result) = reports.try_recv() {
            done(result?)?;
        }
    }
    drop(jobs);
    for result in reports {
        done(result?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn pool() -> Pool {
        Pool::start(NonZeroUsize::new(3)).unwrap()
    }

    fn up_to(count: usize) -> impl FnMut() -> Result<Option<usize>, CopyError> {
        let mut jobs = 0..count;
        move || Ok(jobs.next())
    }

    #[test]
    fn every_job_is_done_once() {
        let mut sum = 0;
        pool()
            .run(
                up_to(1000),
                |_, job| Ok(job),
                |job| {
                    sum += job;
                    Ok(())
                },
            )
            .unwrap();
        assert_eq!(sum, 999 * 1000 / 2);
    }

    #[test]
    fn an_error_ends_the_run_and_the_jobs_that_wait_are_dropped() {
        let begun = AtomicUsize::new(0);
        let work = |_: &mut Worker, job| {
            begun.fetch_add(1, Ordering::SeqCst);
            if job == 10 { Err(CopyError::Cancelled) } else { Ok(()) }
        };
        let ended = pool().run(up_to(1_000_000), work, |()| Ok(()));
        assert!(matches!(ended, Err(CopyError::Cancelled)));
        assert!(begun.load(Ordering::SeqCst) < 10_000);
    }

    #[test]
    fn panicking_threads_end_the_run_instead_of_hanging_it() {
        let work = |_: &mut Worker, _| -> Result<(), CopyError> { panic!("a fault of ours") };
        let run = || pool().run(up_to(1000), work, |()| Ok(()));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    }

    #[test]
    #[ignore = "needs a kernel with Landlock"]
    fn the_threads_of_the_pool_open_nothing() {
        let open = |_: &mut Worker, _| Ok(std::fs::File::open("/proc/self/status").is_ok());
        let check = |opened: bool| {
            assert!(!opened, "a thread of the pool opened a file");
            Ok(())
        };
        pool().run(up_to(20), open, check).unwrap();
    }
}
