//! Delivery of exceptions and interrupts, what holds them off, and the local APIC (SDM volume 3, chapters 6 and 10).

use crate::conformance::program::{End, Fault, Io, UD, fault, fault_with, gp, interrupt, programs, trap};
use umbra_x86::cpuid::feature;

programs! { "interrupts";
    each_exception in Long "
        xor ecx, ecx
        TRY div ecx
        TRY int3
        TRY ud2
        mov rax, cr0
        or eax, 8
        mov cr0, rax
        TRY fld1
        TRY pxor mm0, mm0
        TRY addps xmm0, xmm1
        clts
        mov eax, 0xb0
        TRY mov ds, eax
        TRY mov ss, eax
        mov eax, 0x7f8
        TRY mov ds, eax
    " { faults: &[fault(0), trap(3, 1), UD, fault(7), fault(7), fault(7), fault_with(11, 0xb0), fault_with(12, 0xb0), gp(0x7f8)] }
    overflow_and_bound in Protected "
        mov al, 0x7f
        add al, 1
        TRY into
        clc
        xor eax, eax
        into
        mov dword ptr [0x20000], 5
        mov dword ptr [0x20004], 9
        mov eax, 5
        bound eax, [0x20000]
        mov eax, 9
        bound eax, [0x20000]
        mov eax, 10
        TRY bound eax, [0x20000]
        mov eax, -1
        TRY bound eax, [0x20000]
    " { faults: &[trap(4, 1), fault(5), fault(5)] }
    alignment_check in Long "
        mov rax, cr0
        or eax, 0x40000
        mov cr0, rax
        mov ebx, 0x120000
        pushfq
        or dword ptr [rsp], 0x40000
        popfq
        mov eax, [rbx+1]
        GO3 0x43002
        TRY mov eax, [rbx+1]
        TRY mov [rbx+2], eax
        mov ax, [rbx+2]
        TRY mov ax, [rbx+3]
        mov al, [rbx+3]
        TRY mov rax, [rbx+4]
        movups xmm0, [rbx+1]
        TRY movaps xmm0, [rbx+8]
        pushfq
        and dword ptr [rsp], 0xfffbffff
        popfq
        mov eax, [rbx+1]
    " { faults: &[fault(17), fault(17), fault(17), fault(17), gp(0)] }
    sse_alignment in Long "
        mov ebx, 0x20001
        TRY movaps xmm0, [rbx]
        TRY movntps [rbx], xmm0
        TRY paddd xmm0, [rbx]
        movups xmm0, [rbx]
        TRY fxsave [rbx]
    " { faults: &[gp(0), gp(0), gp(0), gp(0)] }
    device_not_available_and_emulation in Long "
        mov rax, cr0
        mov rbx, rax
        or eax, 4
        mov cr0, rax
        TRY fld1
        TRY addps xmm0, xmm0
        fwait
        or eax, 8
        mov cr0, rax
        TRY fwait
        mov cr0, rbx
        mov rax, cr4
        and eax, 0xfffffdff
        mov cr4, rax
        TRY addps xmm0, xmm0
    " { faults: &[fault(7), UD, fault(7), UD] }
    x87_error_by_exception_16 in Long "
        fninit
        fldcw [rip + 2f]
        fld1
        fldz
        fdivp st(1), st
        TRY fwait
        TRY fld1
        fnclex
        fwait
        fninit
        jmp 3f
    2:  .word 0x37b
    3:  nop
    " { faults: &[fault(16), fault(16)] }
    simd_error_by_exception_19 in Long "
        mov dword ptr [0x20000], 0x1d80
        ldmxcsr [0x20000]
        mov eax, 0x3f800000
        movd xmm0, eax
        pxor xmm1, xmm1
        TRY divss xmm0, xmm1
        movd eax, xmm0
        LOG rax
        stmxcsr [0x20004]
        mov eax, [0x20004]
        LOG rax
        mov rax, cr4
        and eax, 0xfffffbff
        mov cr4, rax
        TRY divss xmm0, xmm1
        mov dword ptr [0x20000], 0x10000
        TRY ldmxcsr [0x20000]
    " { results: &[0x3f80_0000, 0x1d84], faults: &[fault(19), UD, gp(0)] }
    interrupt_stack_table in Long "
        mov byte ptr [0xa064], 1
        mov byte ptr [0xa424], 2
        TRY ud2
        TRY int 0x42
        mov rax, [0xb028]
        LOG rax
        GATE 0x42, 7f
        int 0x42
        jmp 8f
    7:  LOG rsp
        iretq
    8:  nop
    " { results: &[0xf000, 0xffd8], faults: &[UD, trap(0x42, 2)] }
    gate_not_present in Long "
        TRY ud2
        and byte ptr [0xa425], 0x7f
        TRY int 0x42
        mov byte ptr [0xa425], 0x85
        TRY int 0x42
        mov word ptr [0xa432], 0
        TRY int 0x43
        mov word ptr [0xa432], 0x10
        TRY int 0x43
        mov word ptr [0xa432], 0xe0
        TRY int 0x43
    " { faults: &[UD, fault_with(11, 0x212), gp(0x212), gp(0), gp(0x10), fault_with(11, 0xe0)] }
    interrupt_beyond_the_table in Long "
        mov word ptr [0x20000], 0x2ff
        mov qword ptr [0x20002], 0xa000
        lidt [0x20000]
        TRY int 0x30
        int 0x2f
    " { faults: &[gp(0x182), interrupt(0x2f)] }
    external_flag_in_error_codes in Long "
        and byte ptr [0xa065], 0x7f
        TRY ud2
    " { faults: &[fault_with(11, 0x33)] }
    double_fault in Long "
        and byte ptr [0xa0b5], 0x7f
        mov eax, 0xb0
        TRY mov ds, eax
    " { faults: &[fault(8)] }
    double_fault_from_general_protection in Long "
        and byte ptr [0xa0d5], 0x7f
        mov eax, 0x7f8
        TRY mov ds, eax
    " { faults: &[fault(8)] }
    page_fault_in_delivery_is_no_double_fault in Long "
        and byte ptr [0xa065], 0x7f
        TRY ud2
        mov byte ptr [0xa064], 3
        mov byte ptr [0xa065], 0x8e
        mov qword ptr [0x10034], 0x600000
        TRY ud2
    " { faults: &[fault_with(11, 0x33), Fault { vector: 14, error: 2, at: Some(0), cr2: Some(0x5f_fff8) }] }
    page_fault_while_delivering_a_page_fault in Long "
        mov byte ptr [0xa084], 1
        mov byte ptr [0xa0e4], 3
        mov qword ptr [0x10034], 0x600000
        mov ebx, 0x600000
        TRY mov al, [rbx]
    " { faults: &[fault(8)] }
    triple_fault in Long "
        mov qword ptr [0x20002], 0
        mov word ptr [0x20000], 0
        lidt [0x20000]
        ud2
    " { end: End::TripleFault }
    triple_fault_in_protected_mode in Protected "
        mov dword ptr [0x20002], 0
        mov word ptr [0x20000], 0
        lidt [0x20000]
        int3
    " { end: End::TripleFault }
    triple_fault_without_a_stack in Long "
        mov rsp, 0x600000
        mov byte ptr [0x600000], 1
    " { end: End::TripleFault }
    halted_for_ever in Long "
        cli
        hlt
    " { end: End::Sleeps }
    sti_shadow in Long "
        mov al, 0x52
        out 0xe2, al
        xor ecx, ecx
        sti
        inc ecx
        nop
        cli
        LOG rcx
        nop
    " { results: &[1], faults: &[interrupt(0x52)] }
    sti_then_cli_lets_nothing_in in Long "
        mov al, 0x52
        out 0xe2, al
        sti
        cli
        nop
        mov al, 0
        out 0xe2, al
        sti
        nop
        nop
        cli
    " { faults: &[] }
    sti_shadow_ends_after_one_instruction in Long "
        GATE 0x52, 7f
        mov al, 0x52
        out 0xe2, al
        xor ecx, ecx
        sti
        inc ecx
        inc ecx
        inc ecx
        cli
        jmp 8f
    7:  LOG rcx
        iretq
    8:  nop
    " { results: &[1] }
    second_sti_has_no_shadow in Long "
        GATE 0x52, 7f
        xor ecx, ecx
        sti
        nop
        mov al, 0x52
        out 0xe2, al
        sti
        inc ecx
        inc ecx
        cli
        jmp 8f
    7:  LOG rcx
        iretq
    8:  nop
    " { results: &[0] }
    popf_has_no_shadow in Long "
        GATE 0x52, 7f
        mov al, 0x52
        out 0xe2, al
        xor ecx, ecx
        push 0x202
        popfq
        inc ecx
        cli
        jmp 8f
    7:  LOG rcx
        iretq
    8:  nop
    " { results: &[0] }
    iret_enables_at_once in Long "
        GATE 0x52, 7f
        mov al, 0x52
        out 0xe2, al
        xor ecx, ecx
        push 0x10
        push 0xe000
        push 0x202
        push 8
        sub rsp, 8
        SETTOP 6f
        iretq
    6:  inc ecx
        cli
        jmp 8f
    7:  LOG rcx
        iretq
    8:  nop
    " { results: &[0] }
    sti_hlt_wakes in Long "
        GATE 0x52, 7f
        xor ecx, ecx
        mov al, 0x52
        out 0xe2, al
        sti
        hlt
        inc ecx
        cli
        LOG rcx
        jmp 8f
    7:  LOG rcx
        iretq
    8:  nop
    " { results: &[1, 0] }
    pic_interrupt_waits_for_if in Long "
        mov al, 0x52
        out 0xe2, al
        mov ecx, 1000
    2:  loop 2b
        mov al, 0x53
        out 0xe2, al
        sti
        nop
        cli
    " { faults: &[interrupt(0x53)] }
    pic_interrupt_in_ring_3 in Long "
        mov al, 0x52
        out 0xe2, al
        GO3 0x3202
        nop
        BACK0
        cli
        mov rax, [0xb018]
        LOG rax
    " { results: &[0x43], faults: &[interrupt(0x52)] }
    pic_line_that_goes_away in Long "
        out 0xe3, al
        sti
        nop
        nop
        cli
    " { faults: &[] }
    self_ipi_by_message in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov eax, 0x61
        out 0xe4, eax
        mov eax, 0x62
        out 0xe4, eax
        mov eax, [rbx+0x230]
        LOG rax
        sti
        nop
        nop
        cli
    " { results: &[6], faults: &[interrupt(0x62), interrupt(0x61)] }
    apic_off_takes_no_message in Long "
        mov eax, 0x61
        out 0xe4, eax
        sti
        nop
        nop
        cli
    " { faults: &[] }
    task_priority in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov eax, 6
        mov cr8, rax
        mov eax, [rbx+0x80]
        LOG rax
        mov eax, 0x61
        out 0xe4, eax
        sti
        nop
        nop
        cli
        mov eax, 0x75
        out 0xe4, eax
        sti
        nop
        nop
        cli
        mov dword ptr [rbx+0x80], 0x50
        mov rax, cr8
        LOG rax
        sti
        nop
        nop
        cli
    " { results: &[0x60, 5], faults: &[interrupt(0x75), interrupt(0x61)] }
    cr8_reserved_bits in Long "
        mov eax, 0x10
        TRY mov cr8, rax
        mov rax, cr8
        LOG rax
    " { results: &[0], faults: &[gp(0)] }
    self_ipi_by_icr in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        sti
        mov dword ptr [rbx+0x300], 0x40061
        mov ecx, 100
    2:  pause
        loop 2b
        cli
        mov dword ptr [rbx+0x310], 0
        mov dword ptr [rbx+0x300], 0x62
        mov eax, [rbx+0x230]
        LOG rax
        sti
        nop
        cli
    " { results: &[4], faults: &[interrupt(0x61), interrupt(0x62)] }
    nested_by_priority in Long "
        GATE 0x61, 7f
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov eax, 0x61
        out 0xe4, eax
        sti
        nop
        nop
        cli
        jmp 8f
    7:  mov eax, 0x62
        out 0xe4, eax
        mov eax, 0x71
        out 0xe4, eax
        sti
        nop
        nop
        cli
        mov eax, [rbx+0xa0]
        LOG rax
        mov eax, [rbx+0x130]
        LOG rax
        mov dword ptr [rbx+0xb0], 0
        iretq
    8:  nop
    " { results: &[0x60, 2], faults: &[interrupt(0x71), interrupt(0x62)] }
    end_of_a_level_triggered_interrupt in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov eax, 0xc065
        out 0xe5, eax
        out 0xe4, eax
        sti
        nop
        nop
        cli
        mov eax, [rbx+0x1b0]
        LOG rax
    " { results: &[0x20], faults: &[interrupt(0x65)], io: &[Io::End(0x65)], can_move: false }
    apic_timer_one_shot in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov dword ptr [rbx+0x3e0], 0xb
        mov dword ptr [rbx+0x320], 0x66
        mov dword ptr [rbx+0x380], 100000
        sti
        hlt
        cli
        mov eax, [rbx+0x390]
        LOG rax
    " { results: &[0], faults: &[interrupt(0x66)] }
    apic_timer_periodic in Long "
        GATE 0x66, 7f
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov dword ptr [rbx+0x3e0], 0xb
        mov dword ptr [rbx+0x320], 0x20066
        mov dword ptr [rbx+0x380], 300000
        xor ecx, ecx
    2:  sti
        hlt
        cli
        cmp ecx, 3
        jb 2b
        mov dword ptr [rbx+0x380], 0
        cmp ecx, 3
        setae al
        movzx eax, al
        LOG rax
        jmp 8f
    7:  inc ecx
        mov dword ptr [rbx+0xb0], 0
        iretq
    8:  nop
    " { results: &[1] }
    apic_timer_masked in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov dword ptr [rbx+0x3e0], 0xb
        mov dword ptr [rbx+0x320], 0x10066
        mov dword ptr [rbx+0x380], 1000
    2:  mov eax, [rbx+0x390]
        test eax, eax
        jnz 2b
        sti
        nop
        nop
        cli
        mov eax, [rbx+0x230]
        LOG rax
    " { results: &[0], faults: &[] }
    x2apic in Long "
        mov ecx, 0x1b
        rdmsr
        or eax, 0xc00
        wrmsr
        mov ecx, 0x80f
        mov eax, 0x1ff
        xor edx, edx
        wrmsr
        mov ecx, 0x802
        rdmsr
        LOG rax
        GATE 0x63, 7f
        mov ecx, 0x83f
        mov eax, 0x63
        sti
        wrmsr
        nop
        nop
        cli
        mov ecx, 0x803
        rdmsr
        movzx eax, al
        LOG rax
        mov ecx, 0x831
        TRY rdmsr
        mov ecx, 0x802
        TRY wrmsr
        jmp 8f
    7:  mov ecx, 0x813
        rdmsr
        LOG rax
        mov ecx, 0x80b
        xor eax, eax
        wrmsr
        iretq
    8:  nop
    " { results: &[0, 0x14, 8], faults: &[gp(0), gp(0)], needs: &[feature::X2APIC] }
    nmi in Long "
        mov eax, 0x400
        out 0xe4, eax
        nop
        nop
    " { faults: &[interrupt(2)] }
    nmi_is_masked_until_iret in Long "
        GATE 2, 7f
        xor ecx, ecx
        mov eax, 0x400
        out 0xe4, eax
        nop
        nop
        LOG rcx
        jmp 8f
    7:  inc ecx
        cmp ecx, 2
        je 6f
        mov eax, 0x400
        out 0xe4, eax
        nop
        nop
        LOG rcx
    6:  iretq
    8:  nop
    " { results: &[2, 1] }
    nmi_wakes_without_if in Long "
        GATE 2, 7f
        xor ecx, ecx
        mov eax, 0x400
        out 0xe4, eax
        LOG rcx
        jmp 8f
    7:  inc ecx
        iretq
    8:  nop
    " { results: &[1] }
    error_codes_and_stack_of_protected_mode in Protected "
        mov eax, 0x7f8
        TRY mov ds, eax
        mov eax, 0xb0
        TRY mov es, eax
        TRY mov ss, eax
        TRY mov fs, eax
        GATE 0x42, 7f
        mov ebx, esp
        int 0x42
        jmp 8f
    7:  sub ebx, esp
        LOG ebx
        mov eax, [esp+4]
        LOG eax
        iretd
    8:  nop
    " { results: &[12, 8], faults: &[gp(0x7f8), fault_with(11, 0xb0), fault_with(12, 0xb0), fault_with(11, 0xb0)] }
    sixteen_bit_gate in Protected "
        ADDR eax, 7f
        mov [0xa210], ax
        mov byte ptr [0xa215], 0x86
        mov ebx, esp
        int 0x42
        jmp 8f
    7:  sub ebx, esp
        LOG ebx
        movzx eax, word ptr [esp+2]
        LOG eax
        .byte 0x66
        iretd
    8:  nop
    " { results: &[6, 8] }
    trap_gate_in_protected_mode in Protected "
        GATE 0x42, 7f
        mov byte ptr [0xa215], 0x8f
        sti
        int 0x42
        cli
        jmp 8f
    7:  pushfd
        pop eax
        and eax, 0x200
        LOG eax
        iretd
    8:  nop
    " { results: &[0x200] }
    real_mode_vectors in Real "
        TRY int 0x42
        TRY ud2
        xor cx, cx
        TRY div cx
        GATE 0x43, 7f
        sti
        int 0x43
        pushf
        pop ax
        LOG ax
        cli
        jmp 8f
    7:  pushf
        pop ax
        LOG ax
        iret
    8:  mov ax, 0x20
        mov word ptr [0x7800], 0x107
        mov word ptr [0x7802], 0
        mov word ptr [0x7804], 0
        .byte 0x0f, 0x01, 0x1e, 0x00, 0x78
        TRY int 0x42
    " { results: &[0x246, 0x46], faults: &[trap(0x42, 2), UD, fault(0), gp(0)], end: End::Done }
    sti_in_real_mode_takes_the_pic in Real "
        mov al, 0x52
        out 0xe2, al
        xor cx, cx
        sti
        inc cx
        inc cx
        cli
        LOG cx
    " { results: &[2], faults: &[interrupt(0x52)] }
    long_pending_interrupts_come_in_order in Long "
        mov ebx, 0xfee00000
        mov dword ptr [rbx+0xf0], 0x1ff
        mov eax, 0x58
        out 0xe4, eax
        mov eax, 0xd1
        out 0xe4, eax
        mov eax, 0x91
        out 0xe4, eax
        mov eax, 0x92
        out 0xe4, eax
        mov eax, 0xef
        out 0xe4, eax
        sti
        nop
        nop
        nop
        nop
        nop
        cli
    " { faults: &[interrupt(0xef), interrupt(0xd1), interrupt(0x92), interrupt(0x91), interrupt(0x58)] }
    apic_moved_in_memory in Long "
        mov ecx, 0x1b
        rdmsr
        mov eax, 0xfee01900
        wrmsr
        mov ebx, 0xfee01000
        mov eax, [rbx+0x30]
        movzx eax, al
        LOG rax
        rdmsr
        LOG rax
        mov eax, 0xfee00900
        wrmsr
    " { results: &[0x14, 0xfee0_1900] }
}
