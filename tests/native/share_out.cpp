// Runs the layers of exercise.cpp at 3 and 16 threads, more than there are processors, with a library
// that shares out any work (K2T_SHARE_ALL): every row and every few units are a task of their own, and
// many threads have none. On threads of our own, on those of a runtime, and on one that gives fewer
// than it is asked for. Ends with 1 if the numbers are not those of one thread.
#define main exercise
#include "exercise.cpp"
#undef main

namespace {

template <int DIVISOR>
void region(void (*function)(void*), void* data, unsigned threads, unsigned) {
    std::vector<std::thread> others;
    for (unsigned i = 1; i < (threads + DIVISOR - 1) / DIVISOR; ++i) others.emplace_back(function, data);
    function(data);
    for (std::thread& other : others) other.join();
}

struct Threads {
    const char* name;
    void (*region)(void (*)(void*), void*, unsigned, unsigned);
};

}  // namespace

int main() {
    const Threads ways[] = {{"own", nullptr}, {"all", region<1>}, {"a third", region<3>}};
    // Fewer units than threads, and more; fewer panels than threads.
    const Sizes sizes[] = {{1, 7, 3, 1},  {1, 101, 5, 3}, {1, 31, 3, 71},
                           {2, 13, 2, 5}, {3, 29, 5, 17}, {71, 3, 2, 3}};
    int wrong = 0;
    for (int64_t isa = FLOAT32; isa >= 1; isa /= 2) {
        if (!(k2t_instruction_sets() & isa)) continue;
        for (int64_t kind = 0; kind < K2T_KINDS; ++kind)
            for (int64_t merge : {K2T_APART, K2T_MUL})
                for (bool masked : {false, true})
                    for (const Sizes& n : sizes) {
                        Layer layer(isa, kind, merge, masked, n);
                        k2t_use_threads_of(nullptr);
                        const Floats wanted = layer.run(1, 1);
                        for (const Threads& way : ways)
                            for (int64_t threads : {3, 16}) {
                                k2t_use_threads_of(reinterpret_cast<void*>(way.region));
                                const float error = difference(layer.run(threads, 2), wanted);
                                if (error < 1e-5f) continue;
                                std::printf("isa %d kind %d merge %d masked %d, %d x %d units, %d threads "
                                            "(%s): %g\n",
                                            int(isa), int(kind), int(merge), masked, int(n.batch),
                                            int(n.units), int(threads), way.name, error);
                                wrong = 1;
                            }
                    }
    }
    std::puts(wrong ? "other numbers" : "the same numbers");
    return wrong;
}
