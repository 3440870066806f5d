#include "pool.h"

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

// On the stack of its caller: `run` returns only when no helper uses it any more.
struct Job {
    Function function;
    void* context;
    int64_t count;
    std::atomic<int64_t> next{0};
    int64_t seats;        // helpers that may still join; under the pool's mutex
    int64_t helpers = 0;  // helpers at work; under the pool's mutex
    std::condition_variable left;

    void work() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
            function(context, i);
    }
};

// In a burst of short calls, whether torch's threads do the second task instead of the helper. They look
// for work for some milliseconds after an operator of torch has used them, such as a matrix product
// between two calls, and take the helper's processor all that time.
class PairChoice {
public:
    bool is_region() const { return region_.load(std::memory_order_relaxed); }

    // The helper was offered a task, and took it in time or not.
    void note_helper(bool helped) {
        const int64_t rest = rest_.load(std::memory_order_relaxed);
        if (rest > 0) return rest_.store(rest - 1, std::memory_order_relaxed);
        if (failed(!helped)) region_.store(true, std::memory_order_relaxed);
    }

    // A region took `all`, and its tasks these times, whose sum is more if they ran at the same time. If
    // it has stalled: no further try.
    void note_region(Clock::duration all, Clock::duration one, Clock::duration other) {
        const bool good = 10 * all < 9 * (one + other), lost = watch_.has_stalled(all, std::min(one, other), good);
        int64_t next = next_rest_.load(std::memory_order_relaxed);
        if (!failed(!good) && !lost) {
            if (good && next > SHORTEST) next_rest_.store(next - 1, std::memory_order_relaxed);
            return;
        }
        failures_.store(0, std::memory_order_relaxed);
        region_.store(false, std::memory_order_relaxed);
        rest_.store(next, std::memory_order_relaxed);
        next_rest_.store(std::min(2 * next, LONGEST), std::memory_order_relaxed);
    }

private:
    static constexpr int64_t MANY = 6, SHORTEST = 64, LONGEST = 10000;

    // Count a failure, or a success, which makes up for one; tell whether there are many.
    bool failed(bool failure) {
        const int64_t before = failures_.load(std::memory_order_relaxed);
        const int64_t now = failure ? before + 1 : std::max(before - 1, int64_t{0});
        failures_.store(now >= MANY ? 0 : now, std::memory_order_relaxed);
        return now >= MANY;
    }

    std::atomic<bool> region_{false};
    std::atomic<int64_t> failures_{0};
    // Pairs for the helper until torch's threads are tried again, and how many after the next failure.
    std::atomic<int64_t> rest_{0}, next_rest_{SHORTEST};
    StallWatch watch_;
};

// Helper thread for bursts of short calls: calls of two tasks, each shorter than waking a thread takes.
// The caller does task 0, and task 1 as well unless the helper took it meanwhile. The helper spins for
// a while after its last task, and the caller never waits for it before it has begun a task: if it has
// no processor, nothing is lost. It is used only during a burst. Otherwise torch's threads compute, or
// spin, and it would take a processor from them.
class BurstHelper {
public:
    // Count a call, and tell whether it is part of a burst; call `note_end` after it.
    bool in_burst() {
        const auto begun = Clock::now().time_since_epoch().count();
        const bool close = begun - last_.load(std::memory_order_relaxed) < Clock::duration{GAP}.count();
        // One gap does not end a burst, two do.
        const int64_t before = calls_.load(std::memory_order_relaxed);
        const int64_t calls = close ? std::min(before + 1, 2 * MANY) : std::min(before, before / 2);
        calls_.store(calls, std::memory_order_relaxed);
        return calls >= MANY;
    }

    void note_end() { last_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed); }

    // Stop spinning: other threads need the processor.
    void stop_spinning() { stopped_.store(true, std::memory_order_relaxed); }

    // Do both tasks, the second on the helper if it takes it. If it does not, though offered, or takes
    // long, `choice` learns it.
    void run_pair(Function function, void* context, PairChoice* choice) {
        Offer mine{function, context};
        Offer* none = nullptr;
        stopped_.store(false, std::memory_order_relaxed);
        const bool offered = is_apart() && offer_.compare_exchange_strong(none, &mine);
        if (offered && asleep_.load()) {
            std::lock_guard<std::mutex> lock(mutex_);
            asleep_.store(false);
            wanted_.notify_one();
        }
        const auto begun = Clock::now();
        function(context, 0);
        const auto ended = Clock::now();
        Offer* untaken = &mine;
        if (!offered || offer_.compare_exchange_strong(untaken, nullptr)) {
            if (offered && choice) choice->note_helper(false);
            return function(context, 1);
        }
        for (int64_t turn = 0; !mine.done.load(std::memory_order_acquire); ++turn)
            wait_turn(turn, PATIENCE);
        const auto all = Clock::now() - begun, worked = ended - begun;
        const bool good = 10 * (worked + mine.spent) >= 12 * all, lost = watch_.has_stalled(all, worked, good);
        if (choice) choice->note_helper(!lost);
        // The helper lost its processor in the middle of a task: it pauses for as many calls as that delay
        // was long, at least.
        if (lost)
            pause(static_cast<int64_t>(all / std::max(worked, Clock::duration{1})));
        else
            note_gain(good);
    }

    [[noreturn]] void serve() {
        thread_ = os::this_thread();
        alive_.store(true, std::memory_order_release);
        for (;;) {
            Offer* taken = wait_for_offer();
            const auto begun = Clock::now();
            taken->function(taken->context, 1);
            taken->spent = Clock::now() - begun;
            taken->done.store(true, std::memory_order_release);
        }
    }

private:
    struct Offer {
        Function function;
        void* context;
        Clock::duration spent{};  // set before it is done
        std::atomic<bool> done{false};
    };

    static constexpr int64_t PATIENCE = 2000, MANY = 16, SHORTEST = 128, LONGEST = 10000, POOR = 6;
    static constexpr std::chrono::microseconds GAP{200}, LOOKING{200};

    // Let calls pass without the helper, and twice as many the next time: where processors are scarce, it is
    // then hardly ever used.
    void pause(int64_t calls) {
        const int64_t least = next_pause_.load(std::memory_order_relaxed);
        calls_.store(-std::clamp(calls, least, LONGEST), std::memory_order_relaxed);
        next_pause_.store(std::min(2 * least, LONGEST), std::memory_order_relaxed);
    }

    // Whether two threads saved a fifth. Where they often do not, one computes what follows.
    void note_gain(bool good) {
        const int64_t poor = std::max(poor_.load(std::memory_order_relaxed) + (good ? -1 : 1), int64_t{0});
        poor_.store(poor < POOR ? poor : 0, std::memory_order_relaxed);
        if (poor >= POOR) return pause(0);
        const int64_t next = next_pause_.load(std::memory_order_relaxed);
        if (good && next > SHORTEST) next_pause_.store(next - 1, std::memory_order_relaxed);
    }

    // Whether the helper can run on another processor than the caller. The scheduler may leave both on
    // one for seconds although others are idle; then its affinity is set to the others.
    bool is_apart() {
        if (!alive_.load(std::memory_order_acquire)) return false;
        const int here = os::this_processor();
        if (here < 0 || here != at_.load(std::memory_order_relaxed)) return true;
        if (!os::keep_away(thread_, here)) return false;
        at_.store(-1, std::memory_order_relaxed);
        return true;
    }

    // Spin for an offer, then sleep. Waking takes longer than a call, so the offer that woke it is gone
    // by then, and it spins for the next.
    Offer* wait_for_offer() {
        for (;;) {
            const auto until = Clock::now() + LOOKING;
            do {
                at_.store(os::this_processor(), std::memory_order_relaxed);
                for (int64_t turn = 0; turn < 64; ++turn, relax())
                    if (offer_.load(std::memory_order_relaxed))
                        if (Offer* found = offer_.exchange(nullptr)) return found;
            } while (Clock::now() < until && !stopped_.load(std::memory_order_relaxed));
            std::unique_lock<std::mutex> lock(mutex_);
            asleep_.store(true);
            wanted_.wait(lock, [&] { return !asleep_.load(); });
        }
    }

    // End of the last call, and the number of calls in close succession; of all callers.
    std::atomic<Clock::rep> last_{0};
    std::atomic<int64_t> calls_{0};
    // Pairs in close succession that gained little, and the next pause.
    std::atomic<int64_t> poor_{0}, next_pause_{SHORTEST};
    StallWatch watch_;
    std::atomic<Offer*> offer_{nullptr};
    std::atomic<bool> asleep_{false}, stopped_{false};
    os::Thread thread_{};  // once alive
    std::atomic<bool> alive_{false};
    std::atomic<int> at_{-1};  // the processor it ran on last
    std::mutex mutex_;
    std::condition_variable wanted_;
};

struct Pool {
    std::mutex mutex;
    std::condition_variable wanted;
    std::deque<Job*> jobs;
    int64_t threads = 0;
    BurstHelper burst_helper;
    PairChoice pair_choice;
    enum { NONE, STARTED, REFUSED } helper_state = NONE;

    // Whether the burst helper runs; starts it at the first call.
    bool has_burst_helper() {
        std::lock_guard<std::mutex> lock(mutex);
        if (helper_state == NONE) try {
                std::thread(&BurstHelper::serve, &burst_helper).detach();
                helper_state = STARTED;
            } catch (const std::system_error&) {
                helper_state = REFUSED;
            }
        return helper_state == STARTED;
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
// perhaps a locked mutex, so it gets a new pool.
std::atomic<Pool*> current{nullptr};

std::atomic<Region> borrowed{nullptr};

// The threads of an OpenMP runtime did not survive the fork() either, and it does not notice.
void forget() {
    borrowed.store(nullptr);
    current.store(new Pool);
}

Pool& get() {
    static const bool made = [] {
        current.store(new Pool);
        os::call_after_fork(forget);
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

ShortCall::ShortCall(bool counted)
    : counted_(counted && get().has_burst_helper()),
      in_burst_(counted_ && get().burst_helper.in_burst()) {}

ShortCall::~ShortCall() {
    if (counted_) get().burst_helper.note_end();
}

void run_pair(int64_t threads, Function function, void* context) {
    Pool& pool = get();
    PairChoice* const choice = borrowed.load() ? &pool.pair_choice : nullptr;
    if (!choice || !choice->is_region()) return pool.burst_helper.run_pair(function, context, choice);
    struct Timed {
        Function function;
        void* context;
        Clock::duration spent[2];
    } timed{function, context, {}};
    const auto begun = Clock::now();
    run(threads, 2,
        [](void* data, int64_t index) {
            Timed& task = *static_cast<Timed*>(data);
            const auto before = Clock::now();
            task.function(task.context, index);
            task.spent[index] = Clock::now() - before;
        },
        &timed);
    choice->note_region(Clock::now() - begun, timed.spent[0], timed.spent[1]);
}

void run(int64_t threads, int64_t count, Function function, void* context) {
    Job job;
    job.function = function;
    job.context = context;
    job.count = count;
    const int64_t helpers = (threads < count ? threads : count) - 1;
    job.seats = helpers;
    if (helpers <= 0) return job.work();
    Pool& pool = get();
    pool.burst_helper.stop_spinning();
    if (const Region region = borrowed.load()) {
        // Request all threads that torch uses, needed or not: a runtime ends those above the number
        // requested.
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
                break;  // no more threads: the caller does the remaining tasks
            }
            ++pool.threads;
        }
        pool.jobs.push_back(&job);
    }
    helpers > 1 ? pool.wanted.notify_all() : pool.wanted.notify_one();
    job.work();
    std::unique_lock<std::mutex> lock(pool.mutex);
    // No tasks are left: withdraw the free seats, then wait for the helpers at work.
    for (auto at = pool.jobs.begin(); at != pool.jobs.end(); ++at)
        if (*at == &job) {
            pool.jobs.erase(at);
            break;
        }
    job.left.wait(lock, [&] { return job.helpers == 0; });
}

}  // namespace pool
