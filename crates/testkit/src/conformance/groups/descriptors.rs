//! Loads of segment registers, and the instructions that look at descriptors (SDM volume 3, chapters 3 and 5).

use crate::conformance::program::{UD, fault_with, gp, programs};

programs! { "descriptors";
    null_selectors in Long "
        xor eax, eax
        mov ds, eax
        mov es, eax
        mov fs, eax
        mov gs, eax
        mov eax, 3
        mov ds, eax
        mov eax, ds
        LOG rax
        mov eax, [0x20000]
        LOG rax
    " { results: &[3, 0] }
    null_stack_selector in Protected "
        xor eax, eax
        TRY mov ss, eax
        mov eax, 3
        TRY mov ss, eax
        mov eax, ss
        LOG eax
    " { results: &[0x10], faults: &[gp(0), gp(0)] }
    null_stack_selector_in_64_bit_ring_0 in Long "
        xor eax, eax
        mov ss, eax
        push rax
        pop rcx
        mov eax, ss
        LOG rax
        TRY ud2
        mov eax, 3
        TRY mov ss, eax
        mov eax, 0x10
        mov ss, eax
    " { results: &[0], faults: &[UD, gp(0)] }
    wrong_types in Protected "
        mov eax, 0x48
        TRY mov ds, eax
        mov eax, 0xc0
        TRY mov ds, eax
        mov eax, 8
        TRY mov ss, eax
        mov eax, 0xb8
        TRY mov ss, eax
        mov eax, 0x58
        TRY mov es, eax
        mov eax, 8
        TRY .byte 0x8e, 0xc8
        mov eax, 0xa8
        mov ds, eax
        mov eax, 0x10
        mov ds, eax
    " { faults: &[gp(0x48), gp(0xc0), gp(8), gp(0xb8), gp(0x58), UD] }
    privilege_of_data_segments in Protected "
        mov eax, 0x13
        TRY mov ds, eax
        TRY mov ss, eax
        mov eax, 0x38
        mov es, eax
        TRY mov ss, eax
        mov eax, 0x3b
        TRY mov ss, eax
        GO3
        mov eax, 0x10
        TRY mov es, eax
        mov eax, 0xab
        mov es, eax
        mov eax, es
        LOG eax
        mov eax, 0x3a
        TRY mov ss, eax
    " { results: &[0xab], faults: &[gp(0x10), gp(0x10), gp(0x38), gp(0x38), gp(0x10), gp(0x38)] }
    not_present in Protected "
        mov eax, 0xb0
        TRY mov ds, eax
        TRY mov ss, eax
        mov dword ptr [0x20000], 0
        mov word ptr [0x20004], 0xe0
        TRY jmp fword ptr [0x20000]
        TRY call fword ptr [0x20000]
        mov eax, 0xb0
        TRY lldt ax
    " { faults: &[fault_with(11, 0xb0), fault_with(12, 0xb0), fault_with(11, 0xe0), fault_with(11, 0xe0), gp(0xb0)] }
    beyond_the_table in Protected "
        mov eax, 0x200
        TRY mov ds, eax
        mov eax, 0x1fc
        TRY mov ds, eax
        mov eax, 0xfff8
        TRY mov fs, eax
        mov eax, 4
        TRY mov gs, eax
    " { faults: &[gp(0x200), gp(0x1fc), gp(0xfff8), gp(4)] }
    accessed_bit in Long "
        mov al, [0x60d5]
        and eax, 1
        LOG rax
        mov eax, 0xd0
        mov ds, eax
        mov al, [0x60d5]
        and eax, 1
        LOG rax
        mov al, [0x60dd]
        and eax, 1
        LOG rax
        JMPF 0xd8, 7f
    7:  mov al, [0x60dd]
        and eax, 1
        LOG rax
    " { results: &[0, 1, 0, 1] }
    a_failed_load_changes_nothing in Protected "
        mov eax, 0xe8
        mov es, eax
        mov eax, 0x48
        TRY mov es, eax
        mov eax, es
        LOG eax
        mov dword ptr [0x20010], 7
        mov eax, es:[0x10]
        LOG eax
        and byte ptr [0x60d5], 0x7f
        mov eax, 0xd0
        TRY mov es, eax
        mov al, [0x60d5]
        and eax, 1
        LOG eax
    " { results: &[0xe8, 7, 0], faults: &[gp(0x48), fault_with(11, 0xd0)] }
    the_hidden_part_stays in Protected "
        mov eax, 0xe8
        mov es, eax
        mov word ptr [0x60ea], 0
        mov byte ptr [0x60ec], 3
        mov dword ptr [0x20010], 0x22
        mov dword ptr [0x30010], 0x33
        mov eax, es:[0x10]
        LOG eax
        mov eax, 0xe8
        mov es, eax
        mov eax, es:[0x10]
        LOG eax
    " { results: &[0x22, 0x33] }
    local_table in Protected "
        mov eax, [0x60e8]
        mov [0x6808], eax
        mov eax, [0x60ec]
        mov [0x680c], eax
        mov eax, 0xc
        TRY mov es, eax
        mov eax, 0x58
        lldt ax
        mov eax, 0xc
        mov es, eax
        mov dword ptr [0x20004], 0x44
        mov eax, es:[4]
        LOG eax
        sldt eax
        LOG eax
        mov eax, 0x104
        TRY mov es, eax
        xor eax, eax
        lldt ax
        mov eax, 0xc
        TRY mov es, eax
    " { results: &[0x44, 0x58], faults: &[gp(0xc), gp(0x104), gp(0xc)] }
    lldt_errors in Long "
        mov eax, 0x48
        TRY lldt ax
        mov eax, 0x5c
        TRY lldt ax
        mov eax, 0x208
        TRY lldt ax
        and byte ptr [0x605d], 0x7f
        mov eax, 0x58
        TRY lldt ax
        sldt ax
        movzx eax, ax
        LOG rax
    " { results: &[0], faults: &[gp(0x48), gp(0x5c), gp(0x208), fault_with(11, 0x58)] }
    task_register in Long "
        mov al, [0x604d]
        and eax, 0xf
        LOG rax
        mov eax, 0x48
        TRY ltr ax
        mov eax, 0x98
        ltr ax
        mov al, [0x609d]
        and eax, 0xf
        LOG rax
        str eax
        LOG rax
        xor eax, eax
        TRY ltr ax
        mov eax, 0x10
        TRY ltr ax
        and byte ptr [0x604d], 0x7d
        mov eax, 0x48
        TRY ltr ax
    " { results: &[0xb, 0xb, 0x98], faults: &[gp(0x48), gp(0), gp(0x10), fault_with(11, 0x48)] }
    lar in Protected "
        mov eax, 8
        lar ecx, eax
        LOGF 0x040
        and ecx, 0xf0ff00
        LOG ecx
        mov eax, 0xb0
        lar ecx, eax
        and ecx, 0xf0ff00
        LOG ecx
        mov ecx, 0x1234
        xor eax, eax
        lar ecx, eax
        LOGF 0x040
        LOG ecx
        mov eax, 0x200
        lar ecx, eax
        LOGF 0x040
        mov eax, 0x48
        lar ecx, eax
        LOGF 0x040
        LOG ecx
        mov eax, 0x10
        lar cx, ax
        LOG cx
    " { results: &[0x40, 0xc0_9b00, 0xc0_1300, 0, 0x1234, 0, 0x40, 0x8b00, 0x9300] }
    lsl in Protected "
        mov eax, 0x10
        lsl ecx, eax
        LOGF 0x040
        LOG ecx
        mov eax, 0xe8
        lsl ecx, eax
        LOG ecx
        mov eax, 0x48
        lsl ecx, eax
        LOG ecx
        mov ecx, 5
        xor eax, eax
        lsl ecx, eax
        LOGF 0x040
        LOG ecx
        mov eax, 0x10
        lsl cx, ax
        LOG cx
    " { results: &[0x40, 0xffff_ffff, 0xfff, 0x2068, 0, 5, 0xffff] }
    lar_and_lsl_look_at_privilege in Protected "
        GO3
        mov eax, 0x10
        lar ecx, eax
        LOGF 0x040
        lsl ecx, eax
        LOGF 0x040
        mov eax, 0x3b
        lar ecx, eax
        LOGF 0x040
        and ecx, 0xf0ff00
        LOG ecx
        mov eax, 0xa8
        lar ecx, eax
        LOGF 0x040
    " { results: &[0, 0, 0x40, 0xc0_f300, 0x40] }
    lar_and_lsl_of_gates in Protected "
        mov dword ptr [0x60f0], 0x00080000
        mov dword ptr [0x60f4], 0x0000ec00
        mov eax, 0xf0
        lar ecx, eax
        LOGF 0x040
        LOG ecx
        lsl ecx, eax
        LOGF 0x040
        mov dword ptr [0x60f4], 0x0000ee00
        lar ecx, eax
        LOGF 0x040
    " { results: &[0x40, 0xec00, 0, 0] }
    verr_verw in Protected "
        mov eax, 0x10
        verr ax
        LOGF 0x040
        verw ax
        LOGF 0x040
        mov eax, 0xb8
        verr ax
        LOGF 0x040
        verw ax
        LOGF 0x040
        mov eax, 0xc0
        verr ax
        LOGF 0x040
        mov eax, 8
        verr ax
        LOGF 0x040
        verw ax
        LOGF 0x040
        mov eax, 0x48
        verr ax
        LOGF 0x040
        xor eax, eax
        verr ax
        LOGF 0x040
        GO3
        mov eax, 0x10
        verr ax
        LOGF 0x040
        mov eax, 0x3b
        verw ax
        LOGF 0x040
    " { results: &[0x40, 0x40, 0x40, 0, 0, 0x40, 0, 0, 0, 0, 0x40] }
    descriptor_looks_in_real_mode in Real "
        TRY .byte 0x0f, 0x02, 0xc0
        TRY .byte 0x0f, 0x00, 0xc0
        TRY .byte 0x0f, 0x00, 0xe0
        TRY .byte 0x63, 0xc0
    " { faults: &[UD, UD, UD, UD] }
    arpl in Protected "
        mov eax, 0x10
        mov ecx, 0x3b
        arpl ax, cx
        LOGF 0x040
        LOG ax
        arpl ax, cx
        LOGF 0x040
        LOG ax
    " { results: &[0x40, 0x13, 0, 0x13] }
    tables_are_stored in Long "
        sgdt [0x20000]
        mov rax, [0x20002]
        LOG rax
        mov ax, [0x20000]
        movzx eax, ax
        LOG rax
        sidt [0x20000]
        mov rax, [0x20002]
        LOG rax
        movzx eax, word ptr [0x20000]
        LOG rax
        mov word ptr [0x20000], 0x1ff
        mov rax, 0xffff800000006000
        mov [0x20002], rax
        sidt [0x20010]
        mov rax, 0x0000800000000000
        mov [0x20002], rax
        TRY lgdt [0x20000]
        TRY lidt [0x20000]
    " { results: &[0x6000, 0x1ff, 0xa000, 0xfff], faults: &[gp(0), gp(0)] }
    lgdt_with_16_bit_operands_loads_24_bits in Protected "
        mov word ptr [0x20000], 0x1ff
        mov dword ptr [0x20002], 0xff006000
        .byte 0x66, 0x0f, 0x01, 0x15
        .long 0x20000
        mov eax, 0x10
        mov ds, eax
        sgdt [0x20010]
        mov eax, [0x20012]
        LOG eax
    " { results: &[0x6000] }
    sixty_four_bit_system_descriptors in Long "
        mov dword ptr [0x6060], 0
        mov eax, 0x58
        lldt ax
        mov dword ptr [0x6060], 0x00008000
        TRY lldt ax
        mov dword ptr [0x6064], 0x00001f00
        mov dword ptr [0x6060], 0
        TRY lldt ax
    " { faults: &[gp(0x58), gp(0x58)] }
    segment_registers_store_16_bits in Protected "
        mov eax, 0x10
        mov ds, eax
        mov eax, -1
        .byte 0x66, 0x8c, 0xd8
        LOG eax
        mov dword ptr [0x20000], -1
        mov word ptr [0x20000], ds
        mov eax, [0x20000]
        LOG eax
        mov ecx, esp
        .byte 0x1e
        sub ecx, esp
        LOG ecx
        mov ax, [esp]
        LOG ax
        .byte 0x07
        mov ecx, esp
        .byte 0x66, 0x1e
        sub ecx, esp
        LOG ecx
        .byte 0x66, 0x07
    " { results: &[0xffff_0010, 0xffff_0010, 4, 0x10, 2] }
    far_return_to_a_null_selector in Long "
        push 0
        push 0x8000
        TRY rex64 retf
        push 0x10
        push 0x8000
        TRY rex64 retf
        push 0xe0
        push 0x8000
        TRY rex64 retf
        mov rsp, 0xf000
    " { faults: &[gp(0), gp(0x10), fault_with(11, 0xe0)] }
    iret_with_bad_selectors in Long "
        push 0x10
        push 0xe000
        push 2
        push 0
        push 0x8000
        TRY iretq
        mov qword ptr [rsp+8], 0x48
        TRY iretq
        mov qword ptr [rsp+8], 0x43
        TRY iretq
        mov qword ptr [rsp+32], 0x33
        TRY iretq
        mov qword ptr [rsp+32], 0x3b
        mov qword ptr [rsp+8], 8
        TRY iretq
        mov rsp, 0xf000
    " { faults: &[gp(0), gp(0x48), gp(0x10), gp(0x30), gp(0x38)] }
    iret_to_a_non_canonical_address in Long "
        push 0x10
        push 0xe000
        push 2
        push 8
        mov rax, 0x0000800000000000
        push rax
        TRY iretq
        mov rsp, 0xf000
    " { faults: &[gp(0)] }
    iret_with_nested_task_flag_in_long_mode in Long "
        push 0x10
        push 0xe000
        push 2
        push 8
        push 0x8000
        pushfq
        or dword ptr [rsp], 0x4000
        popfq
        TRY iretq
        pushfq
        and dword ptr [rsp], 0xffffbfff
        popfq
        mov rsp, 0xf000
    " { faults: &[gp(0)] }
}
