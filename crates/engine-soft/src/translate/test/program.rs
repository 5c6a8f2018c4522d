//! Guest code that shows each way in which the translator makes code.

/// Name, width, bytes.
pub(super) const PROGRAMS: &[(&str, u32, &str)] = &[
    // add rax,rbx; lea rcx,[rax+rdx*4+5]; xor r8d,r9d; jmp .+0x40
    ("registers", 64, "4801d8488d4c90054531c8eb3e"),
    // mov rax,[rbx+8]; mov ecx,[rdx+rsi*4-4]; movzx edi,byte ptr [rdi]; jmp .+0x40
    ("load", 64, "488b43088b4cb2fc0fb63feb3e"),
    // mov [rbx],rax; mov [rcx+rdx*8+0x1000],r8w; mov byte ptr [rsi],7; jmp .+0x40
    ("store", 64, "48890366448984d100100000c60607eb3e"),
    // mov rax,[rbx]; mov r15,r10; mov rcx,[rbx+8]; jmp .+0x40
    ("window", 64, "488b034d89d7488b4b08eb3e"),
    // add dword ptr [rsi+rcx*4],1; lock xadd [rdi],rax; jmp .+0x40
    ("read-modify-write", 64, "83048e01f0480fc107eb3e"),
    // mov r10,[r11+8]; add r15,r10; mov [r15+r10*2],r11d; jmp .+0x40
    ("resident registers", 64, "4d8b53084d01d747891c57eb3e"),
    // mov rax,[rip+0x100]; lea rcx,[rip+0x200]; inc qword ptr [rip+0x300]; jmp .+0x40
    ("relative to the instruction", 64, "488b0500010000488d0d0002000048ff0500030000eb3e"),
    // mov rax,fs:[0x28]; mov gs:[rbx+rcx],rax; jmp .+0x40
    ("segment base", 64, "64488b042528000000654889040beb3e"),
    // mov rax,[ebx+ecx*2+8]; mov [r10d],eax; jmp .+0x40
    ("narrow address", 64, "67488b444b0867418902eb3e"),
    // mov eax,[0x12345678]; mov dword ptr [0xffffffff80001000],1; jmp .+0x40
    ("absolute address", 64, "8b042578563412c704250010008001000000eb3e"),
    // add rax,rbx; mov rcx,[rdx]; adc rcx,0; setc dl; jmp .+0x40
    ("flags across a load", 64, "4801d8488b0a4883d1000f92c2eb3e"),
    // mov rcx,[rdx]; cmp rcx,rbx; jne .+0x40; jmp .+0x40
    ("flags to a branch", 64, "488b0a4839d9753eeb3e"),
    // dec rcx; jne .-3; jmp .+0x40
    ("loop", 64, "48ffc975fbeb3e"),
    // jrcxz .+0x40; adc rcx,rbx; jrcxz .+0xe; jmp .+0x40
    ("branch if zero", 64, "e33e4811d9e30ceb3e"),
    // test eax,eax; js .+0x2000; jmp .+0x40
    ("branch off the page", 64, "85c00f88fa1f0000eb3e"),
    // mov eax,1; jmp .+0x5000
    ("jump off the page", 64, "b801000000e9fb4f0000"),
    // push rbp; push r10; push 0x12; push 0x12345678; push -2; pop r11; pop rbx; pop rsp; jmp .+0x40
    ("push and pop", 64, "5541526a1268785634126afe415b5b5ceb3e"),
    // mov rbp,rsp; sub rsp,0x20; mov [rbp-8],rdi; leave; ret
    ("frame", 64, "4889e54883ec2048897df8c9c3"),
    // call .+0x300
    ("call", 64, "e8fb020000"),
    // call [rbx+8]
    ("call through memory", 64, "ff5308"),
    // jmp rax
    ("jumps by register", 64, "ffe0"),
    // call r11
    ("call by resident register", 64, "41ffd3"),
    // jmp [rax*8+0x2000]
    ("table of jumps", 64, "ff24c500200000"),
    // ret 0x10
    ("return that drops", 64, "c21000"),
    // movaps xmm0,[rdi]; addps xmm0,xmm1; movups [rsi+rax],xmm0; jmp .+0x40
    ("packed single", 64, "0f28070f58c10f110406eb3e"),
    // cvtsi2sd xmm0,rax; mulsd xmm0,[rbx]; ucomisd xmm0,xmm2; ja .+0x40; jmp .+0x40
    ("scalar double", 64, "f2480f2ac0f20f5903660f2ec2773eeb3e"),
    // vpaddd ymm1,ymm2,[rdi]; vpmovmskb eax,ymm1; vzeroupper; jmp .+0x40
    ("avx", 64, "c5edfe0fc5fdd7c1c5f877eb3e"),
    // xor edx,edx; div rcx; idiv dword ptr [rbx]; jmp .+0x40
    ("division", 64, "31d248f7f1f73beb3e"),
    // mov ah,[rbx]; mov [rcx],dh; add bh,cl; jmp .+0x40
    ("high bytes", 64, "8a23883100cfeb3e"),
    // lock cmpxchg [rdi],rcx; lock cmpxchg16b [rsi]; xchg r10,[r11]; jmp .+0x40
    ("compare and exchange", 64, "f0480fb10ff0480fc70e4d8713eb3e"),
    // cmp rax,[rbx]; cmovl rax,r10; setge r11b; sbb rcx,rcx; jmp .+0x40
    ("conditions", 64, "483b03490f4cc2410f9dc34819c9eb3e"),
    // shl rax,cl; shr qword ptr [rbx],3; ror r10d,cl; shlx rax,[rbx],rcx; jmp .+0x40
    ("shifts", 64, "48d3e048c12b0341d3cac4e2f1f703eb3e"),
    // cpuid; inc eax; rep movsb; sti; jmp .+0x40
    ("interpreted", 64, "0fa2ffc0f3a4fbeb3e"),
    // vmovdqu64 zmm1,[rdi]; vpaddd zmm2{k1},zmm1,zmm3; vmovdqu64 [rsi],zmm2; jmp .+0x40
    ("sixty-four bytes", 64, "62f1fe486f0f62f17549fed362f1fe487f16eb3e"),
    // push ebp; mov ebp,esp; mov eax,[ebp+8]; add eax,[ebx+ecx*4]; leave; ret
    ("narrow function", 32, "5589e58b450803048bc9c3"),
    // call .+0x20
    ("narrow calls", 32, "e81b000000"),
    // jmp [ebx+4]
    ("narrow jump", 32, "ff6304"),
    // inc eax; dec dword ptr [edi]; push 5; pop edx; jmp .+0x40
    ("narrow increments", 32, "40ff0f6a055aeb3e"),
];
