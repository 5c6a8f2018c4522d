//! Ports, addresses without memory, ROM: widths, order, accesses that cross (SDM volume 1, chapter 19; the seam's rules in `CpuIo`).

use crate::conformance::program::{Io, pf, programs};
use umbra_x86::cpuid::feature;

programs! { "io";
    port_widths in Long "
        mov edx, 0x310
        mov rax, 0x1122334455667788
        out dx, al
        out dx, ax
        out dx, eax
        mov rax, -1
        in al, dx
        LOG rax
        mov rax, -1
        in ax, dx
        LOG rax
        mov rax, -1
        in eax, dx
        LOG rax
    " { results: &[0xffff_ffff_ffff_ff10, 0xffff_ffff_ffff_1211, 0x1615_1413],
        io: &[Io::Out(0x310, 1, 0x88), Io::Out(0x310, 2, 0x7788), Io::Out(0x310, 4, 0x5566_7788), Io::In(0x310, 1), Io::In(0x310, 2),
            Io::In(0x310, 4)] }
    unclaimed_ports_read_ones in Long "
        mov edx, 0x1234
        xor eax, eax
        in eax, dx
        LOG rax
        in al, 0x7f
        LOG rax
    " { results: &[0xffff_ffff, 0xffff_ffff] }
    string_input in Long "
        mov edx, 0x320
        mov edi, 0x20000
        mov ecx, 4
        rep insb
        LOG rcx
        LOG rdi
        mov eax, [0x20000]
        LOG rax
        mov ecx, 2
        rep insd
        mov rax, [0x20004]
        LOG rax
        insw
        LOG rdi
    " { results: &[0, 0x2_0004, 0x1312_1110, 0x1b1a_1918_1716_1514, 0x2_000e],
        io: &[Io::In(0x320, 1), Io::In(0x320, 1), Io::In(0x320, 1), Io::In(0x320, 1), Io::In(0x320, 4), Io::In(0x320, 4), Io::In(0x320, 2)] }
    string_output in Long "
        mov edx, 0x320
        mov esi, 0x20000
        mov rax, 0x8877665544332211
        mov [rsi], rax
        mov ecx, 3
        rep outsb
        LOG rsi
        outsw
        std
        mov esi, 0x20004
        mov ecx, 2
        rep outsd
        cld
        LOG rsi
    " { results: &[0x2_0003, 0x1_fffc],
        io: &[Io::Out(0x320, 1, 0x11), Io::Out(0x320, 1, 0x22), Io::Out(0x320, 1, 0x33), Io::Out(0x320, 2, 0x5544),
            Io::Out(0x320, 4, 0x8877_6655), Io::Out(0x320, 4, 0x4433_2211)] }
    string_input_to_a_missing_page in Long "
        mov ebx, 0x22000
        mov qword ptr [0x4110], 0
        invlpg [rbx]
        mov edx, 0x320
        mov edi, 0x21ffe
        mov ecx, 4
        TRY rep insb
        LOG rcx
        LOG rdi
        movzx eax, word ptr [0x21ffe]
        LOG rax
    " { results: &[2, 0x2_2000, 0x1110], faults: &[pf(2, 0x2_2000)], io: &[Io::In(0x320, 1), Io::In(0x320, 1)] }
    string_input_many in Long "
        mov edx, 0x320
        mov edi, 0x20ff0
        mov ecx, 256
        rep insb
        LOG rcx
        LOG rdi
        movzx eax, byte ptr [0x210ef]
        LOG rax
    " { results: &[0, 0x2_10f0, 0x0f], io: &[Io::In(0x320, 1); 256] }
    memory_mapped_widths in Long "
        mov ebx, 0xd0000010
        mov rax, 0x1122334455667788
        mov [rbx], al
        mov [rbx+2], ax
        mov [rbx+4], eax
        mov [rbx+8], rax
        mov rax, -1
        mov al, [rbx]
        LOG rax
        mov ax, [rbx+2]
        LOG rax
        mov eax, [rbx+4]
        LOG rax
        mov rax, [rbx+8]
        LOG rax
    " { results: &[0xffff_ffff_ffff_ff10, 0xffff_ffff_ffff_1312, 0x1716_1514, 0x1f1e_1d1c_1b1a_1918],
        io: &[Io::Write(0xd000_0010, &[0x88]), Io::Write(0xd000_0012, &[0x88, 0x77]), Io::Write(0xd000_0014, &[0x88, 0x77, 0x66, 0x55]),
            Io::Write(0xd000_0018, &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]), Io::Read(0xd000_0010, 1), Io::Read(0xd000_0012, 2),
            Io::Read(0xd000_0014, 4), Io::Read(0xd000_0018, 8)] }
    memory_mapped_extensions in Long "
        mov ebx, 0xd0000080
        movzx eax, byte ptr [rbx]
        LOG rax
        movsx eax, byte ptr [rbx]
        LOG rax
        movsx rax, word ptr [rbx]
        LOG rax
        movsxd rax, dword ptr [rbx]
        LOG rax
        mov byte ptr [rbx], 0x5a
        mov dword ptr [rbx], 0x12345678
        mov qword ptr [rbx], -2
    " { results: &[0x80, 0xffff_ff80, 0xffff_ffff_ffff_8180, 0xffff_ffff_8382_8180],
        io: &[Io::Read(0xd000_0080, 1), Io::Read(0xd000_0080, 1), Io::Read(0xd000_0080, 2), Io::Read(0xd000_0080, 4),
            Io::Write(0xd000_0080, &[0x5a]), Io::Write(0xd000_0080, &[0x78, 0x56, 0x34, 0x12]),
            Io::Write(0xd000_0080, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])] }
    memory_mapped_read_and_write in Long "
        mov ebx, 0xd0000000
        add dword ptr [rbx+4], 1
        LOGF
        or byte ptr [rbx+8], 0xf0
        mov eax, 0x55
        xchg [rbx+12], eax
        LOG rax
        cmp dword ptr [rbx+16], 0x13121110
        LOGF 0x040
        test byte ptr [rbx+1], 1
        LOGF 0x040
    " { results: &[4, 0x0f0e_0d0c, 0x40, 0],
        io: &[Io::Read(0xd000_0004, 4), Io::Write(0xd000_0004, &[5, 5, 6, 7]), Io::Read(0xd000_0008, 1), Io::Write(0xd000_0008, &[0xf8]),
            Io::Read(0xd000_000c, 4), Io::Write(0xd000_000c, &[0x55, 0, 0, 0]), Io::Read(0xd000_0010, 4), Io::Read(0xd000_0001, 1)] }
    memory_mapped_string_store in Long "
        mov edi, 0xd0000000
        mov eax, 0x44332211
        mov ecx, 3
        rep stosd
        LOG rdi
        LOG rcx
        stosb
    " { results: &[0xd000_000c, 0],
        io: &[Io::Write(0xd000_0000, &[0x11, 0x22, 0x33, 0x44]), Io::Write(0xd000_0004, &[0x11, 0x22, 0x33, 0x44]),
            Io::Write(0xd000_0008, &[0x11, 0x22, 0x33, 0x44]), Io::Write(0xd000_000c, &[0x11])] }
    memory_mapped_string_copy in Long "
        mov esi, 0xd0000020
        mov edi, 0x20000
        mov ecx, 4
        rep movsw
        mov rax, [0x20000]
        LOG rax
        mov esi, 0x20000
        mov edi, 0xd0000040
        mov ecx, 2
        rep movsd
        LOG rdi
    " { results: &[0x2726_2524_2322_2120, 0xd000_0048],
        io: &[Io::Read(0xd000_0020, 2), Io::Read(0xd000_0022, 2), Io::Read(0xd000_0024, 2), Io::Read(0xd000_0026, 2),
            Io::Write(0xd000_0040, &[0x20, 0x21, 0x22, 0x23]), Io::Write(0xd000_0044, &[0x24, 0x25, 0x26, 0x27])] }
    memory_mapped_vectors in Long "
        mov ebx, 0xd0000010
        movups xmm0, [rbx]
        movups [0x20000], xmm0
        mov rax, [0x20000]
        LOG rax
        mov rax, [0x20008]
        LOG rax
        movups [rbx+0x10], xmm0
    " { results: &[0x1716_1514_1312_1110, 0x1f1e_1d1c_1b1a_1918],
        io: &[Io::Read(0xd000_0010, 16), Io::Write(0xd000_0020, &[0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c,
            0x1d, 0x1e, 0x1f])], io_in_parts: true }
    memory_mapped_quarter_vectors in Long "
        mov ebx, 0xd0000010
        movq xmm1, qword ptr [rbx]
        movq rax, xmm1
        LOG rax
        movd xmm1, dword ptr [rbx+4]
        movd eax, xmm1
        LOG rax
    " { results: &[0x1716_1514_1312_1110, 0x1716_1514], io: &[Io::Read(0xd000_0010, 8), Io::Read(0xd000_0014, 4)] }
    across_two_pages_without_memory in Long "
        mov ebx, 0xd0000ffc
        mov rax, [rbx]
        LOG rax
        mov rax, 0x1122334455667788
        mov [rbx], rax
    " { results: &[0x0302_0100_fffe_fdfc], io: &[Io::Read(0xd000_0ffc, 8),
        Io::Write(0xd000_0ffc, &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11])], io_in_parts: true }
    from_memory_into_nothing in Long "
        mov eax, 0xd0000003
        mov [0x4108], rax
        mov ebx, 0x20ffc
        mov dword ptr [rbx], 0x44332211
        mov ecx, 0x21000
        invlpg [rcx]
        mov rax, [rbx]
        LOG rax
        mov rax, -1
        mov [rbx], rax
        mov eax, [rbx]
        LOG rax
    " { results: &[0x0302_0100_4433_2211, 0xffff_ffff],
        io: &[Io::Read(0xd000_0000, 4), Io::Write(0xd000_0000, &[0xff, 0xff, 0xff, 0xff])], io_in_parts: true }
    unaligned in Long "
        mov ebx, 0xd0000001
        mov eax, [rbx]
        LOG rax
        mov [rbx+2], ax
    " { results: &[0x0403_0201], io: &[Io::Read(0xd000_0001, 4), Io::Write(0xd000_0003, &[1, 2])], io_in_parts: true }
    rom_is_read_and_not_written in Long "
        mov ebx, 0xe0000
        mov eax, [rbx]
        LOG rax
        mov dword ptr [rbx], 0x12345678
        mov eax, [rbx]
        LOG rax
        inc byte ptr [rbx+4]
        mov al, [rbx+4]
        movzx eax, al
        LOG rax
    " { results: &[0x204d_4f52, 0x204d_4f52, 0x62],
        io: &[Io::Write(0xe_0000, &[0x78, 0x56, 0x34, 0x12]), Io::Write(0xe_0004, &[0x63])], memory: &[(0xe_0000, b"ROM bytes")] }
    the_hole_below_1m in Real "
        mov ax, 0xa000
        mov es, ax
        mov al, es:[0x1234]
        movzx cx, al
        LOG cx
        mov word ptr es:[0x10], 0x5678
        mov di, 0x20
        mov cx, 2
        rep stosb
    " { results: &[0x34], io: &[Io::Read(0xa_1234, 1), Io::Write(0xa_0010, &[0x78, 0x56]), Io::Write(0xa_0020, &[0x34]), Io::Write(0xa_0021, &[0x34])] }
    from_ring_3 in Long "
        mov eax, 0xd0000007
        mov [0x4900], rax
        mov ebx, 0x120000
        invlpg [rbx]
        GO3
        mov eax, [rbx+8]
        LOG rax
        mov byte ptr [rbx+3], 1
    " { results: &[0x0b0a_0908], io: &[Io::Read(0xd000_0008, 4), Io::Write(0xd000_0003, &[1])] }
    push_and_pop_of_nothing in Long "
        mov ebx, 0xd0000100
        push qword ptr [rbx]
        pop rax
        LOG rax
        push 0x77
        pop qword ptr [rbx+8]
    " { results: &[0x0706_0504_0302_0100], io: &[Io::Read(0xd000_0100, 8), Io::Write(0xd000_0108, &[0x77, 0, 0, 0, 0, 0, 0, 0])] }
    local_apic_is_no_memory in Long "
        mov ebx, 0xfee00000
        mov eax, [rbx+0x30]
        movzx eax, al
        LOG rax
        mov dword ptr [rbx+0x80], 0x20
        mov eax, [rbx+0x80]
        LOG rax
        mov dword ptr [rbx+0xd0], 0x5000000
        mov eax, [rbx+0xd0]
        LOG rax
    " { results: &[0x14, 0x20, 0x500_0000], io: &[] }
    avx_of_nothing in Long "
        mov ebx, 0xd0000020
        vmovups ymm0, [rbx]
        vmovups [0x20000], ymm0
        mov rax, [0x20018]
        LOG rax
    " { results: &[0x3f3e_3d3c_3b3a_3938], io: &[Io::Read(0xd000_0020, 32)], io_in_parts: true, needs: &[feature::AVX] }
    widths_from_v86 in Protected "
        mov byte ptr [0x100ce], 0
        GOV86
        mov dx, 0x330
        mov eax, 0x11223344
        out dx, eax
        in ax, dx
        LOG ax
        int 0x41
        SIZE 32
        ASKERNEL
    " { results: &[0x1110], io: &[Io::Out(0x330, 4, 0x1122_3344), Io::In(0x330, 2)], faults: &[] }
}
