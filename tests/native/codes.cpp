// Print the numbers that the kernel shares with Python, one a line: table, number and name, with tabs
// between. test_codes.py compares them with Python's tables.
#include <cstdint>
#include <cstdio>
#include <initializer_list>

#include "isa.h"
#include "program.h"

#define NAME(constant, name) name,

static void print(const char* table, int64_t number, const char* name) {
    std::printf("%s\t%lld\t%s\n", table, static_cast<long long>(number), name);
}

static void print_all(const char* table, std::initializer_list<const char*> names) {
    int64_t number = 0;
    for (const char* name : names) print(table, number++, name);
}

int main() {
    print_all("kind", {K2T_KIND_CODES(NAME)});
    print_all("activation", {K2T_ACTIVATION_CODES(NAME)});
    print_all("merge", {K2T_MERGE_CODES(NAME)});
    print_all("result", {K2T_RESULT_CODES(NAME)});
    print_all("operation", {K2T_OPERATION_CODES(NAME)});
    print_all("map", {K2T_MAP_CODES(NAME)});
    print_all("reduction", {K2T_REDUCTION_CODES(NAME)});
    print_all("pooling", {K2T_POOLING_CODES(NAME)});
    print_all("number", {K2T_NUMBER_CODES(NAME)});
#define PRINT_KIND(constant, name) \
    print("gates", gate_count(constant), name), print("states", state_count(constant), name);
    K2T_KIND_CODES(PRINT_KIND)
#define PRINT_SET(constant, kernel, name, ...) print("instruction set", int64_t{1} << constant, name);
    K2T_KERNELS(PRINT_SET)
#define PRINT_SIZE(type) print("bytes", sizeof(type), #type);
    PRINT_SIZE(K2tShape)
    PRINT_SIZE(K2tArray)
    PRINT_SIZE(K2tWeights)
    PRINT_SIZE(K2tRun)
    PRINT_SIZE(K2tProgram)
    PRINT_SIZE(K2tGradient)
}
