// Made from processors.py by tools/write_docs.py. KERNEL(constant, kernel, name, where, needs...)
// stands for the kernel of an instruction set for a precision, from bit 0 on. where: K2T_ANYWHERE
// or K2T_X86. needs: bits of the registers of CPUID 1.0 ecx, 7.0 ebx, 7.0 ecx, 7.0 edx, 7.1 eax;
// of XCR0.
#pragma once

#define K2T_KERNELS(KERNEL) \
    KERNEL(K2T_FLOAT32_PLAIN, k2t_float32_plain, "float32 plain", K2T_ANYWHERE, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0) \
    KERNEL(K2T_FLOAT32_AVX2, k2t_float32_avx2, "float32 AVX2", K2T_X86, 0x8001000, 0x20, 0x0, 0x0, 0x0, 0x6) \
    KERNEL(K2T_FLOAT32_AVX512, k2t_float32_avx512, "float32 AVX-512", K2T_X86, 0x8001000, 0xc0030020, 0x0, 0x0, 0x0, 0xe6) \
    KERNEL(K2T_BFLOAT16_AVX512BF16, k2t_bfloat16_avx512bf16, "bfloat16 AVX512-BF16", K2T_X86, 0x8001000, 0xc0030020, 0x0, 0x0, 0x20, 0xe6) \
    KERNEL(K2T_INT8_AVXVNNI, k2t_int8_avxvnni, "int8 AVX-VNNI", K2T_X86, 0x8001000, 0x20, 0x0, 0x0, 0x10, 0x6) \
    KERNEL(K2T_INT8_AVX512VNNI, k2t_int8_avx512vnni, "int8 AVX512-VNNI", K2T_X86, 0x8001000, 0xc0030020, 0x800, 0x0, 0x0, 0xe6) \
    KERNEL(K2T_BFLOAT16_AMX, k2t_bfloat16_amx, "bfloat16 AMX", K2T_X86, 0x8001000, 0xc0030020, 0x800, 0x3400000, 0x20, 0x600e6) \
    KERNEL(K2T_INT8_AMX, k2t_int8_amx, "int8 AMX", K2T_X86, 0x8001000, 0xc0030020, 0x800, 0x3400000, 0x20, 0x600e6)
