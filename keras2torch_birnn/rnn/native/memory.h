// Scratch memory that a thread keeps: as large as its largest request; freed when the thread ends.
#pragma once

#include <cstdlib>

class Memory {
public:
    // Null if there is none. The numbers of an earlier request are lost.
    float* at_least(long floats) {
        if (floats > size_) {
            std::free(data_);
            size_ = 0;
            const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
            data_ = static_cast<float*>(std::aligned_alloc(64, bytes));
            if (data_) size_ = floats;
        }
        return data_;
    }
    ~Memory() { std::free(data_); }

private:
    float* data_ = nullptr;
    long size_ = 0;
};
