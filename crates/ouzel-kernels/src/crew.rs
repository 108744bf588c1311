//! Threads that stay awake through a run: its steps are shorter than it takes to fall asleep and be woken.

use crate::shared::Shared;
use rayon::prelude::*;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Looks for a job after which a thread offers itself to others: a tenth of a millisecond or so.
const SPINS: u32 = 4096;

/// The bit of a gate that says that the job may be joined. Below it is the number of threads that are at it.
const OPEN: u64 = 1 << 16;

/// One in the bits of a gate that number the jobs.
const NEXT: u64 = OPEN << 1;

/// What is done for each number of a task.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The tasks of a thread that nobody has begun. No two share lines of the cache, which processors fetch in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Part {
    next: AtomicUsize,
    end: AtomicUsize,
}

/// The threads of a pool that are there for what one of them, the leader, shares out.
struct Crew {
    /// Number of the job, whether it may be joined, and how many threads have joined it.
    gate: AtomicU64,
    /// Written by the leader while the gate is closed and nobody is at work.
    job: UnsafeCell<Option<NonNull<Job<'static>>>>,
    parts: Box<[Part]>,
    /// What a task has panicked with on another thread than the leader's.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    is_over: AtomicBool,
}

// SAFETY: all but `job` are atomic. That is written by the leader alone, while nobody is at work, and read by those who have joined: their
// joining reads the number that the leader has written after it, and the leader waits for them to leave before it goes on.
unsafe impl Sync for Crew {}
// SAFETY: as above; it is bound to no thread.
unsafe impl Send for Crew {}

/// What a thread has to do with a crew.
#[derive(Clone, Copy)]
enum Role {
    None,
    Leader(NonNull<Crew>),
    /// At a task, the leader too.
    AtWork,
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::None) };
}

/// Gives a thread a role for as long as it lives.
struct Acting(Role);

impl Acting {
    fn new(role: Role) -> Self {
        Acting(ROLE.replace(role))
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        ROLE.set(self.0);
    }
}

/// Runs `work` on a thread of the rayon pool while its other threads stay awake for the kernels that it runs.
///
/// Between two kernels that follow each other closely no thread falls asleep: woken by the system, it would come to the next one 20 to 60
/// microseconds late. While nothing is there for them for longer than that, the threads are at hand for other users of the pool.
///
/// Kernels that run outside of this share out their work as rayon does.
///
/// # Panics
/// If `work` does, or what a kernel does for it on any thread.
///
/// ```
/// use ouzel_kernels::{Level, Reduction, View, reduce_channels, together};
/// let view = View::packed(1, [1, 1, 2], 2);
/// let mut sums = [0.0; 2];
/// together(|| reduce_channels(Level::portable(), Reduction::Sum, &[1.0, 2.0, 3.0, 4.0], &view, &mut sums));
/// assert_eq!(sums, [3.0, 7.0]);
/// ```
pub fn together<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if !matches!(ROLE.get(), Role::None) {
        return work();
    }
    // On a thread of the pool: from outside, each kernel would wake one up and wait for it.
    rayon::scope(|_| {
        let threads = rayon::current_num_threads();
        let crew = Arc::new(Crew {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            parts: (0..threads).map(|_| Part::default()).collect(),
            panic: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let leader = rayon::current_thread_index().unwrap_or(0);
        let server = crew.clone();
        // Nobody waits for those who come late: a thread that waits takes up other work, which would wait in turn, on and on.
        rayon::spawn_broadcast(move |context| {
            // The leader comes here where it waits for others in the midst of its work, and at the end.
            match (context.index() + threads - leader) % threads {
                0 => {}
                part => server.serve(part),
            }
        });
        let _over = Over(&crew);
        let _acting = Acting::new(Role::Leader(NonNull::from(&*crew)));
        work()
    })
}

/// Runs tasks of the numbers below `tasks`, on all threads of the crew or of the pool. Neighbouring tasks are rather done by the same
/// thread, and by the same one each time.
pub(crate) fn share_out(tasks: usize, run: impl Fn(usize) + Sync) {
    match ROLE.get() {
        _ if tasks <= 1 => (0..tasks).for_each(run),
        Role::AtWork => (0..tasks).for_each(run),
        // SAFETY: the crew lives until the role ends.
        Role::Leader(crew) => unsafe { crew.as_ref() }.share_out(tasks, &run),
        Role::None => (0..tasks).into_par_iter().with_max_len(1).for_each(&run),
    }
}

/// The same for the chunks of a slice: `run` receives the number and the elements of each.
pub(crate) fn share_out_chunks<T: Send>(
    slice: &mut [T],
    length: usize,
    run: impl Fn(usize, &mut [T]) + Sync,
) {
    let total = slice.len();
    let shared = Shared::new(slice);
    share_out(total.div_ceil(length), |index| {
        let first = index * length;
        // SAFETY: chunks are disjoint, and each task runs once.
        run(index, unsafe { shared.part(first, length.min(total - first)) });
    });
}

/// Sends the crew home at the end, and when there is a panic.
struct Over<'a>(&'a Crew);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// Ends a job at the end, and when there is a panic: nobody may be at work any more when the closure goes.
struct Closing<'a>(&'a Crew);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let mut gate = self.0.gate.fetch_and(!OPEN, Ordering::Acquire) & !OPEN;
        let mut spins = 0;
        while !gate.is_multiple_of(OPEN) {
            match spins < SPINS {
                true => spin_loop(),
                false => std::thread::yield_now(),
            }
            spins = SPINS.min(spins + 1);
            gate = self.0.gate.load(Ordering::Acquire);
        }
    }
}

impl Crew {
    /// Runs tasks, as the leader.
    fn share_out(&self, tasks: usize, run: &Job<'_>) {
        let threads = self.parts.len();
        for (n, part) in self.parts.iter().enumerate() {
            part.next.store(tasks * n / threads, Ordering::Relaxed);
            part.end.store(tasks * (n + 1) / threads, Ordering::Relaxed);
        }
        // SAFETY: only the lifetime changes. Nobody uses the job after `Closing` has gone, which is before `run` goes.
        let job =
            unsafe { std::mem::transmute::<NonNull<Job<'_>>, NonNull<Job<'static>>>(NonNull::from(run)) };
        let number = self.gate.load(Ordering::Relaxed) / NEXT;
        // SAFETY: the gate is closed and nobody is at work.
        unsafe { *self.job.get() = Some(job) };
        // Closed and left by all, the gate has no bits but the number.
        self.gate.store(number.wrapping_add(1) * NEXT + OPEN, Ordering::Release);
        let closing = Closing(self);
        self.work(0, run);
        drop(closing);
        if let Some(panic) = self.panic.lock().ok().and_then(|mut panic| panic.take()) {
            resume_unwind(panic);
        }
    }

    /// Does the tasks of a part, then what is left of the others.
    fn work(&self, first: usize, run: &Job<'_>) {
        let _acting = Acting::new(Role::AtWork);
        let (before, from) = self.parts.split_at(first);
        for part in from.iter().chain(before) {
            let end = part.end.load(Ordering::Relaxed);
            loop {
                let task = part.next.fetch_add(1, Ordering::Relaxed);
                if task >= end {
                    break;
                }
                run(task);
            }
        }
    }

    /// Joins the leader's jobs until the crew is over; `part` is whose tasks this thread begins with.
    fn serve(&self, part: usize) {
        let (mut done, mut spins) = (0, 0);
        while !self.is_over.load(Ordering::Acquire) {
            let gate = self.gate.load(Ordering::Relaxed);
            let is_new = gate & OPEN != 0 && gate / NEXT != done;
            if is_new
                && self.gate.compare_exchange(gate, gate + 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                (done, spins) = (gate / NEXT, 0);
                // SAFETY: this thread has joined the job, so that the leader waits for it.
                let job = unsafe { (*self.job.get()).expect("invariant: an open job").as_ref() };
                let result = catch_unwind(AssertUnwindSafe(|| self.work(part, job)));
                if let (Err(panic), Ok(mut first)) = (result, self.panic.lock()) {
                    first.get_or_insert(panic);
                }
                self.gate.fetch_sub(1, Ordering::Release);
            } else if spins < SPINS {
                spins += 1;
                spin_loop();
            } else if rayon::yield_now() != Some(rayon::Yield::Executed) {
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    /// How often each task of a job has run.
    fn counts(tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        share_out(tasks, |task| {
            counts[task].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            pool(threads).install(|| {
                together(|| {
                    for tasks in (0..40).chain([1000]) {
                        assert_eq!(counts(tasks), vec![1; tasks], "{threads} threads");
                    }
                });
                assert_eq!(counts(100), vec![1; 100], "{threads} threads without a crew");
            });
        }
    }

    #[test]
    fn chunks_are_those_of_the_slice() {
        let mut elements = [0; 10];
        let number = |chunk: usize, elements: &mut [usize]| elements.fill(chunk + 1);
        pool(3).install(|| together(|| share_out_chunks(&mut elements, 4, number)));
        assert_eq!(elements, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]);
    }

    #[test]
    fn tasks_may_share_out_others_and_use_the_pool() {
        let sum = AtomicUsize::new(0);
        pool(3).install(|| {
            together(|| {
                share_out(5, |_| {
                    sum.fetch_add(counts(7).iter().sum(), Ordering::Relaxed);
                    sum.fetch_add((0..4).into_par_iter().map(|_| 1).sum(), Ordering::Relaxed);
                });
                // Long enough for the leader to have to wait for what others have taken.
                let long = |_| {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    together(|| 1)
                };
                sum.fetch_add((0..30).into_par_iter().map(long).sum(), Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 5 * (7 + 4) + 30);
    }

    #[test]
    fn many_runs_in_a_pool_do_not_pile_up_on_a_stack() {
        let depth = AtomicUsize::new(0);
        let deepest = AtomicUsize::new(0);
        pool(3).install(|| {
            (0..300).into_par_iter().for_each(|_| {
                deepest.fetch_max(depth.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
                together(|| assert_eq!(counts(9), [1; 9]));
                depth.fetch_sub(1, Ordering::Relaxed);
            });
        });
        // Three, one a thread, and now and then one more in each; a thread that waited for others would come to a hundred.
        assert!(deepest.into_inner() < 30);
    }

    #[test]
    fn callers_from_everywhere_get_their_results() {
        let pool = pool(2);
        std::thread::scope(|scope| {
            for tasks in 20..28 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..10 {
                        pool.install(|| together(|| assert_eq!(counts(tasks), vec![1; tasks])));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_of_any_task_arrives_and_the_pool_lives_on() {
        let pool = pool(2);
        for bad in 0..8 {
            let run =
                || pool.install(|| together(|| share_out(8, |task| assert!(task != bad, "task {bad}"))));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("task {bad}")));
        }
        pool.install(|| together(|| assert_eq!(counts(8), [1; 8])));
    }
}
