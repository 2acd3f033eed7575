//! A pool of threads that can open nothing, fed through bounded queues.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::CopyError;
use crate::image::Decoder;
use crate::sys::aligned::AlignedBuffer;
use crate::sys::landlock;
use crate::verify::CHUNK_LEN;

/// More threads than this gain nothing on one disk and cost memory: a buffer and a decoder each.
const MOST_THREADS: usize = 16;
/// How often the calling thread looks up when no thread has anything to say.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Threads of our own, under Landlock without any rule.
pub(crate) struct Pool {
    threads: rayon::ThreadPool,
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
        let open = Arc::new(AtomicBool::new(false));
        let failed = Arc::clone(&open);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("reimage-{index}"))
            .start_handler(move |_| {
                if landlock::forbid_opening().is_err() {
                    failed.store(true, Ordering::SeqCst);
                }
            })
            .build()
            .map_err(io::Error::other)?;
        // Every thread answers once, so the flag is final.
        pool.broadcast(|_| ());
        if open.load(Ordering::SeqCst) {
            return Err(io::Error::other("a thread could not be kept from opening files (Landlock)"));
        }
        Ok(Self { threads: pool })
    }

    /// Runs `work` on every job that `next` gives and hands each result to `done`, on this thread.
    ///
    /// At most two jobs a thread wait; the first error ends the run after the jobs that are under way.
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
        self.threads.in_place_scope(|scope| {
            for _ in 0..count {
                let (queue, work, report) = (&queue, &work, report.clone());
                scope.spawn(move |_| {
                    let mut worker = Worker::default();
                    loop {
                        let job = queue.lock().expect("no thread panics with the queue").recv();
                        let Ok(job) = job else { break };
                        if report.send(work(&mut worker, job)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(report);
            // The queue closes when `feed` returns, so that every thread comes to its end.
            feed(jobs, &reports, &mut next, &mut done)
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
                    if let Ok(result) = reports.recv_timeout(LOOK_UP) {
                        done(result?)?;
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
