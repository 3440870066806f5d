#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include "system.h"

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

struct Pool {
    std::mutex mutex;
    std::condition_variable wanted;
    std::deque<Job*> jobs;
    int64_t threads = 0;
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

void run(int64_t threads, int64_t count, Function function, void* context) {
    Job job;
    job.function = function;
    job.context = context;
    job.count = count;
    const int64_t helpers = (threads < count ? threads : count) - 1;
    job.seats = helpers;
    if (helpers <= 0) return job.work();
    Pool& pool = get();
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
