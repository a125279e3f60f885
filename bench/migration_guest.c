// SPDX-License-Identifier: MIT
//
// The guest of bench/migrations.py: a multiboot kernel without paging, of 32 bits, that writes to
// its memory at a pace until it is killed. The host shares the memory: it fills it, sets the
// orders in `struct control`, and reads the counts there.
//
// The timer wakes it a thousand times a second; it then does the writes that have become due by
// the TSC, which stands still while the guest is stopped, and halts again.

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

enum mode { UNIFORM, HOTCOLD, SEQ, BURST };

// bench/migrations.py has the same layout.
struct control {
    // orders
    u32 go; // the last to be set
    u32 mode;
    u32 n_pages; // working set, from FILL_BASE up
    u32 n_hot; // of its pages
    u32 rate; // writes per TSC tick, in units of 2^-40
    u32 max_gap; // ticks; what became due in a longer stall is not made up for
    u32 half_period; // ticks of a burst, and of the pause after it
    u32 state[4]; // of the generator; not all zero
    // counts; sequence is odd while they change
    u32 sequence;
    u64 tsc;
    u64 n_writes;
    u64 active; // ticks in which it was to write: all, or those in bursts
};

enum { TIMER_HZ = 1000, PIT_HZ = 1193182, TIMER_VECTOR = 0x20 };

#define CONTROL ((volatile struct control *)0x200000)
#define FILL_BASE 0x1000000u
#define PAGE_SIZE 4096u

// Multiboot leaves the GDT undefined, which an interrupt needs: flat code and data.
__asm__(".text\n"
        ".align 4\n"
        ".long 0x1badb002, 0, -0x1badb002\n"
        ".globl _start\n"
        "_start:\n"
        "    cli\n"
        "    movl $stack_end, %esp\n"
        "    lgdt gdtr\n"
        "    ljmp $8, $1f\n"
        "1:  movl $16, %eax\n"
        "    movl %eax, %ds\n"
        "    movl %eax, %es\n"
        "    movl %eax, %ss\n"
        "    call run\n"
        "timer:\n"
        "    pushl %eax\n"
        "    movb $0x20, %al\n" // end of interrupt
        "    outb %al, $0x20\n"
        "    popl %eax\n"
        "    iret\n"
        ".data\n"
        ".align 8\n"
        "gdt: .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff\n"
        "gdtr: .word 23\n"
        "    .long gdt\n"
        ".bss\n"
        "    .skip 4096\n"
        "stack_end:\n"
        ".text\n");

void timer(void); // not to be called

static struct {
    u32 low, high;
} idt[TIMER_VECTOR + 1];

static void out(unsigned short port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static u64 tsc(void)
{
    u64 now;
    __asm__ volatile("rdtsc" : "=A"(now));
    return now;
}

static void start_timer(void)
{
    idt[TIMER_VECTOR].low = 8 << 16 | ((u32)timer & 0xffff);
    idt[TIMER_VECTOR].high = ((u32)timer & 0xffff0000) | 0x8e00;
    struct {
        unsigned short limit;
        u32 base;
    } __attribute__((packed)) idtr = {sizeof idt - 1, (u32)idt};
    __asm__ volatile("lidt %0" : : "m"(idtr));
    static const u8 main_pic[] = {TIMER_VECTOR, 4, 1, 0xfe}; // vectors, slave, mode, mask
    out(0x20, 0x11);
    for (u32 i = 0; i < sizeof main_pic; i++)
        out(0x21, main_pic[i]);
    out(0x43, 0x34); // channel 0, mode 2
    out(0x40, PIT_HZ / TIMER_HZ & 0xff);
    out(0x40, PIT_HZ / TIMER_HZ >> 8);
    __asm__ volatile("sti");
}

// xoshiro128++ by D. Blackman and S. Vigna
static u32 rotate(u32 x, int k)
{
    return x << k | x >> (32 - k);
}

static u32 draw(u32 state[4])
{
    u32 result = rotate(state[0] + state[3], 7) + state[0];
    u32 t = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= t;
    state[3] = rotate(state[3], 11);
    return result;
}

static u32 below(u32 n, u32 state[4])
{
    return (u64)draw(state) * n >> 32;
}

static u32 next_page(u32 mode, u32 n_pages, u32 n_hot, u32 state[4])
{
    static u32 sweep;
    switch (mode) {
    case HOTCOLD:
        return below(10, state) ? below(n_hot, state) : n_hot + below(n_pages - n_hot, state);
    case SEQ:
        return sweep = sweep + 1 < n_pages ? sweep + 1 : 0;
    default:
        return below(n_pages, state);
    }
}

void run(void)
{
    volatile struct control *control = CONTROL;
    start_timer();
    u32 state[4];
    u64 last = tsc(), n_writes = 0, active = 0, phase = 0, due = 0;
    for (int going = 0;;) {
        __asm__ volatile("hlt");
        u64 now = tsc();
        u64 passed = now - last;
        last = now;
        if (!going && control->go) {
            going = 1;
            for (int i = 0; i < 4; i++)
                state[i] = control->state[i];
        } else if (going) {
            phase += passed;
            while (phase >= 2ull * control->half_period)
                phase -= 2ull * control->half_period;
            if (control->mode != BURST || phase < control->half_period) {
                active += passed;
                due += (passed < control->max_gap ? passed : control->max_gap) * control->rate;
            }
        }
        control->sequence++;
        for (; due >> 40; due -= 1ull << 40) {
            u32 page = next_page(control->mode, control->n_pages, control->n_hot, state);
            *(volatile u64 *)(FILL_BASE + page * PAGE_SIZE) = ++n_writes;
        }
        control->tsc = now;
        control->n_writes = n_writes;
        control->active = active;
        control->sequence++;
    }
}
