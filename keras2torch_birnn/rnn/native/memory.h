// Scratch memory that a thread keeps: as large as its largest request; freed when the thread ends.
#pragma once

#include "system.h"

class Memory {
public:
    // Null if there is none. The numbers of an earlier request are lost.
    float* at_least(int64_t floats) {
        if (floats > size_) {
            os::release(data_);
            size_ = 0;
            const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 63) / 64 * 64;
            data_ = static_cast<float*>(os::allocate(bytes));
            if (data_) size_ = floats;
        }
        return data_;
    }
    ~Memory() { os::release(data_); }

private:
    float* data_ = nullptr;
    int64_t size_ = 0;
};
