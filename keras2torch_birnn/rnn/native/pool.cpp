#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

namespace pool {
namespace {

// Lives on its caller's stack: `run` returns only when no helper holds it any more.
struct Job {
    Function function;
    void* context;
    long count;
    std::atomic<long> next{0};
    long seats;        // helpers that may still join; under the pool's mutex
    long helpers = 0;  // helpers at work; under the pool's mutex
    std::condition_variable left;

    void work() {
        for (long i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
            function(context, i);
    }
};

using Clock = std::chrono::steady_clock;

// A thread for two tasks too short for a sleeping one to be woken for: who calls does one, and the
// other as well unless this one took it meanwhile. It looks for work for a while after the last, and
// is never waited for before it has begun: where it finds no processor, nothing is lost. It is asked
// only where many such calls follow each other closely. Between others, torch's threads are at work,
// or look for some, and it would be in their way.
class Companion {
public:
    // Whether enough such calls came before this one; `ended` is to be told after each.
    bool asked() {
        const auto begun = Clock::now().time_since_epoch().count();
        const bool close = begun - last_.load(std::memory_order_relaxed) < Clock::duration{GAP}.count();
        // One interruption does not end a row of calls, two do.
        const long before = calls_.load(std::memory_order_relaxed);
        const long calls = close ? std::min(before + 1, 2 * MANY) : std::min(before, before / 2);
        calls_.store(calls, std::memory_order_relaxed);
        return calls >= MANY;
    }

    void ended() { last_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed); }

    // Others are to have its processor.
    void rest() { resting_.store(true, std::memory_order_relaxed); }

    void with_other(Function function, void* context) {
        Offer mine{function, context};
        Offer* none = nullptr;
        resting_.store(false, std::memory_order_relaxed);
        const bool offered = apart() && offer_.compare_exchange_strong(none, &mine);
        if (offered && asleep_.load()) {
            std::lock_guard<std::mutex> lock(mutex_);
            asleep_.store(false);
            wanted_.notify_one();
        }
        const auto begun = Clock::now();
        function(context, 0);
        const auto ended = Clock::now();
        Offer* untaken = &mine;
        if (!offered || offer_.compare_exchange_strong(untaken, nullptr))
            return function(context, 1);
        for (long turn = 0; !mine.done.load(std::memory_order_acquire); ++turn)
            turn < PATIENCE ? relax() : std::this_thread::yield();
        // It lost its processor in the middle. What that cost has to be earned back by as many calls
        // without it before it is asked again: where processors are short, that is never.
        const auto waited = Clock::now() - ended, worked = ended - begun;
        if (waited > LONG * worked)
            calls_.store(-std::min(LONGEST, static_cast<long>(waited / std::max(worked, Clock::duration{1}))),
                         std::memory_order_relaxed);
    }

    [[noreturn]] void live() {
        thread_ = pthread_self();
        alive_.store(true, std::memory_order_release);
        for (;;) {
            Offer* taken = look();
            taken->function(taken->context, 1);
            taken->done.store(true, std::memory_order_release);
        }
    }

private:
    struct Offer {
        Function function;
        void* context;
        std::atomic<bool> done{false};
    };

    static constexpr long PATIENCE = 2000, MANY = 16, LONG = 16, LONGEST = 10000;
    static constexpr std::chrono::microseconds GAP{200}, LOOKING{200};

    // Whether the companion can run beside the caller. Where it sits on the caller's processor, as it
    // may for seconds though others are idle, it is sent to the others.
    bool apart() {
        if (!alive_.load(std::memory_order_acquire)) return false;
#if defined(__linux__)
        const int here = sched_getcpu();
        if (here != at_.load(std::memory_order_relaxed)) return true;
        cpu_set_t others;
        if (here < 0 || here >= CPU_SETSIZE || sched_getaffinity(0, sizeof others, &others) != 0)
            return false;
        CPU_CLR(here, &others);
        if (CPU_COUNT(&others) == 0) return false;
        if (pthread_setaffinity_np(thread_, sizeof others, &others) != 0) return false;
        at_.store(-1, std::memory_order_relaxed);
#endif
        return true;
    }

    void say_where() {
#if defined(__linux__)
        at_.store(sched_getcpu(), std::memory_order_relaxed);
#endif
    }

    // It takes longer to wake than a call takes, so what it was woken for is done by then: it looks for
    // the next.
    Offer* look() {
        for (;;) {
            const auto until = Clock::now() + LOOKING;
            do {
                say_where();
                for (long turn = 0; turn < 64; ++turn, relax())
                    if (offer_.load(std::memory_order_relaxed))
                        if (Offer* found = offer_.exchange(nullptr)) return found;
            } while (Clock::now() < until && !resting_.load(std::memory_order_relaxed));
            std::unique_lock<std::mutex> lock(mutex_);
            asleep_.store(true);
            wanted_.wait(lock, [&] { return !asleep_.load(); });
        }
    }

    // When the last call ended, and how many followed each other closely; of whichever caller.
    std::atomic<Clock::rep> last_{0};
    std::atomic<long> calls_{0};
    std::atomic<Offer*> offer_{nullptr};
    std::atomic<bool> asleep_{false}, resting_{false};
    pthread_t thread_{};  // once alive
    std::atomic<bool> alive_{false};
    std::atomic<int> at_{-1};  // the processor it was seen on last
    std::mutex mutex_;
    std::condition_variable wanted_;
};

struct Pool {
    std::mutex mutex;
    std::condition_variable wanted;
    std::deque<Job*> jobs;
    long threads = 0;
    Companion companion;
    enum { NONE, THERE, REFUSED } accompanied = NONE;

    // Whether there is a thread for short work.
    bool has_companion() {
        std::lock_guard<std::mutex> lock(mutex);
        if (accompanied == NONE) try {
                std::thread(&Companion::live, &companion).detach();
                accompanied = THERE;
            } catch (const std::system_error&) {
                accompanied = REFUSED;
            }
        return accompanied == THERE;
    }

    void help() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            wanted.wait(lock, [&] { return !jobs.empty(); });
            Job* job = jobs.front();
            if (--job->seats == 0) jobs.pop_front();
            ++job->helpers;
            lock.unlock();
            job->work();
            lock.lock();
            if (--job->helpers == 0) job->left.notify_one();
        }
    }
};

// Never destroyed: its threads wait until the process ends. A child of fork() has no threads and
// perhaps a locked mutex, so it starts with a new pool.
std::atomic<Pool*> current{nullptr};

std::atomic<Region> borrowed{nullptr};

// A runtime's threads did not survive a fork() either, but it does not know.
void forget() {
    borrowed.store(nullptr);
    current.store(new Pool);
}

Pool& get() {
    static const bool made = [] {
        current.store(new Pool);
        pthread_atfork(nullptr, nullptr, forget);
        return true;
    }();
    (void)made;
    return *current.load();
}

}  // namespace

void use(Region region) {
    get();  // so that a fork is noticed
    borrowed.store(region);
}

void share(long threads, Function function, void* context) {
    Pool& pool = get();
    if (!pool.has_companion()) return run(threads, 2, function, context);
    pool.companion.asked() ? pool.companion.with_other(function, context)
                           : run(threads, 2, function, context);
    pool.companion.ended();
}

void run(long threads, long count, Function function, void* context) {
    Job job;
    job.function = function;
    job.context = context;
    job.count = count;
    const long helpers = (threads < count ? threads : count) - 1;
    job.seats = helpers;
    if (helpers <= 0) return job.work();
    Pool& pool = get();
    pool.companion.rest();
    if (const Region region = borrowed.load()) {
        // All threads that torch uses, needed or not: a runtime that is asked for fewer than last
        // time ends the others.
        region([](void* data) { static_cast<Job*>(data)->work(); }, &job,
               static_cast<unsigned>(threads), 0);
        return;
    }
    {
        std::lock_guard<std::mutex> lock(pool.mutex);
        while (pool.threads < helpers) {
            try {
                std::thread(&Pool::help, &pool).detach();
            } catch (const std::system_error&) {
                break;  // no more threads to be had: the caller does the rest
            }
            ++pool.threads;
        }
        pool.jobs.push_back(&job);
    }
    helpers > 1 ? pool.wanted.notify_all() : pool.wanted.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(pool.mutex);
    // Nothing is left to take: free the seats that nobody took, then wait for those at work.
    for (auto at = pool.jobs.begin(); at != pool.jobs.end(); ++at)
        if (*at == &job) {
            pool.jobs.erase(at);
            break;
        }
    job.left.wait(lock, [&] { return job.helpers == 0; });
}

}  // namespace pool
