/*
 * killswitch_gate.h - read the gate page of a trading node before every order. Header-only, C99, C11 or C++, Linux.
 *
 *     ks_gate gate;
 *     char error[256];
 *     if (ks_gate_open(&gate, "/dev/shm/killswitch/prod/gate", error, sizeof error) != 0) { ... send nothing ... }
 *     if (ks_gate_allows_fast(&gate)) { ... send ... }
 *     else {
 *         ks_order order = {.symbol = "BTCUSDT", .venue = "bybit"};
 *         ks_cause cause;
 *         ks_mode mode = ks_gate_check(&gate, &order, &cause);
 *         if (mode == KS_ACTIVE || (mode == KS_REDUCE_ONLY && order_reduces)) { ... send ... }
 *     }
 *     ks_gate_close(&gate);
 *
 * Ask before building the order and again just before sending it. A cancel never asks. An attribute that is left NULL
 * or empty matches every scope: what is unknown is frozen. Everything that cannot be read, proved whole or understood
 * answers KS_FROZEN. The bytes and the reasoning are in docs/gate.md; a test compares the offsets below with it.
 *
 * Include this header first, or define _POSIX_C_SOURCE yourself, so that clock_gettime is declared under -std=c11.
 * One ks_gate may be read by many threads; ks_gate_open and ks_gate_close must not run beside a reader.
 */
#ifndef KILLSWITCH_GATE_H
#define KILLSWITCH_GATE_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if !defined(__cplusplus) && defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L && !defined(__STDC_NO_ATOMICS__)
#include <stdatomic.h>
#define KS_LOAD_ACQUIRE(word) atomic_load_explicit((const _Atomic uint64_t *)(word), memory_order_acquire)
#define KS_LOAD_RELAXED(word) atomic_load_explicit((const _Atomic uint64_t *)(word), memory_order_relaxed)
#define KS_FENCE_ACQUIRE() atomic_thread_fence(memory_order_acquire)
#else /* C99 and C++: the same operations as built-ins of gcc and clang */
#define KS_LOAD_ACQUIRE(word) __atomic_load_n((word), __ATOMIC_ACQUIRE)
#define KS_LOAD_RELAXED(word) __atomic_load_n((word), __ATOMIC_RELAXED)
#define KS_FENCE_ACQUIRE() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "a gate page is little-endian words that are read with one native load; this machine is not little-endian"
#endif
#if UINTPTR_MAX < UINT64_MAX
#error "a 32-bit machine does not load a 64-bit word in one piece; the C reader is for 64-bit machines"
#endif
#ifndef CLOCK_BOOTTIME
#error "this system has no CLOCK_BOOTTIME; the C reader is for Linux"
#endif

#define KS_MAGIC 0x313045544147534bULL /* "KSGATE01" */
#define KS_LAYOUT_VERSION 1u
#define KS_HEADER_BYTES 4096u
#define KS_ROW_BYTES 512u
#define KS_MAX_ROWS 64u
#define KS_TOTAL_BYTES (KS_HEADER_BYTES + KS_MAX_ROWS * KS_ROW_BYTES)
#define KS_NAME_MAX_BYTES 64u

/* Offsets from the start of the page, in bytes. */
#define KS_AT_magic 0u
#define KS_AT_layout_version 8u
#define KS_AT_total_bytes 16u
#define KS_AT_clock_id 24u
#define KS_AT_boot_id 32u
#define KS_AT_open_until_ns 64u
#define KS_AT_permit_deadline_ns 128u
#define KS_AT_heartbeat_ns 136u
#define KS_AT_sequence 192u
#define KS_AT_check 200u
#define KS_AT_mode 208u
#define KS_AT_epoch 216u
#define KS_AT_row_count 224u
#define KS_AT_changed_at_ns 232u
#define KS_AT_writer_pid 240u
#define KS_AT_writer_instance 248u
#define KS_AT_node_bytes 256u
#define KS_AT_node 264u
#define KS_AT_cluster_bytes 328u
#define KS_AT_cluster 336u
#define KS_GUARDED_END 400u

/* Offsets from the start of a row, in bytes. */
#define KS_AT_row_mode 0u
#define KS_AT_scope_bytes 8u
#define KS_AT_id_bytes 10u
#define KS_AT_trigger_bytes 12u
#define KS_AT_reason_bytes 14u
#define KS_AT_scope 16u
#define KS_AT_id 256u
#define KS_AT_trigger 320u
#define KS_AT_reason 352u

#define KS_READ_TRIES 20
#define KS_RETRY_NS 100000L

typedef enum { KS_ACTIVE = 0, KS_REDUCE_ONLY = 1, KS_FROZEN = 2 } ks_mode;

/* One mapped page. Treat the fields as private. */
typedef struct {
    const uint64_t *words; /* NULL when closed */
    dev_t device;
    ino_t inode;
    char path[512];
} ks_gate;

/* What is known of an order; NULL or "" for what is not. The node comes from the page. */
typedef struct {
    const char *symbol, *venue, *account, *desk, *trader, *client, *strategy;
} ks_order;

/* Why an order meets a mode: the strictest cause. All texts end with NUL. */
typedef struct {
    ks_mode mode;
    uint64_t epoch;
    char scope[241], id[65], trigger[33], reason[161];
} ks_cause;

/* A consistent copy of the page; `used` words of it are filled. About 33 KiB: mind small thread stacks. */
typedef struct {
    uint64_t open_until_ns, permit_deadline_ns, heartbeat_ns;
    uint64_t header[KS_GUARDED_END / 8];
    uint64_t rows[KS_MAX_ROWS * KS_ROW_BYTES / 8];
} ks_copy;

/* Nanoseconds on the clock of the deadlines; the end of time when it cannot be read, so that every permit is over. */
static inline uint64_t ks_now_ns(void)
{
    struct timespec now;
    if (clock_gettime(CLOCK_BOOTTIME, &now) != 0)
        return UINT64_MAX;
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline const uint64_t *ks_word(const ks_gate *gate, uint32_t offset)
{
    return gate->words + offset / 8;
}

/*
 * The fast path: one load, one clock read. True: nothing is frozen on this node and its permit is valid; send. False:
 * ask ks_gate_check. The load comes first, so that the clock is read after it however long the thread was paused.
 */
static inline bool ks_gate_allows_fast(const ks_gate *gate)
{
    if (gate->words == NULL)
        return false;
    uint64_t open_until_ns = KS_LOAD_ACQUIRE(ks_word(gate, KS_AT_open_until_ns));
    return ks_now_ns() < open_until_ns;
}

static inline uint32_t ks_crc32(uint32_t crc, const void *bytes, size_t count)
{
    static const uint32_t nibble[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    const uint8_t *at = (const uint8_t *)bytes;
    crc = ~crc;
    for (size_t i = 0; i < count; i++) {
        crc ^= at[i];
        crc = (crc >> 4) ^ nibble[crc & 15u];
        crc = (crc >> 4) ^ nibble[crc & 15u];
    }
    return ~crc;
}

static inline void ks_set_cause(ks_cause *cause, ks_mode mode, uint64_t epoch, const char *id, const char *trigger,
                                const char *reason)
{
    memset(cause, 0, sizeof *cause);
    cause->mode = mode;
    cause->epoch = epoch;
    snprintf(cause->scope, sizeof cause->scope, "global");
    snprintf(cause->id, sizeof cause->id, "%s", id);
    snprintf(cause->trigger, sizeof cause->trigger, "%s", trigger);
    snprintf(cause->reason, sizeof cause->reason, "%s", reason);
}

static inline int ks_refuse(char *error, size_t error_bytes, const char *path, const char *why)
{
    if (error != NULL && error_bytes > 0)
        snprintf(error, error_bytes, "the gate page at %.200s cannot be used: %s; start the agent of this node", path,
                 why);
    return -1;
}

/* 16 bytes that name this run of the kernel, zeros when it does not tell: an old page's deadlines mean nothing now. */
static inline void ks_boot_id(uint8_t id[16])
{
    char text[40] = {0};
    size_t digits = 0;
    memset(id, 0, 16);
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t count = read(fd, text, sizeof text - 1);
    close(fd);
    for (ssize_t i = 0; i < count && digits < 32; i++) {
        char ch = text[i];
        int value = ch >= '0' && ch <= '9' ? ch - '0' : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : -1;
        if (value < 0)
            continue;
        id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | value);
        digits++;
    }
    if (digits != 32)
        memset(id, 0, 16);
}

static inline const char *ks_prefix_fault(const uint64_t *words)
{
    uint8_t boot[16];
    if (words[KS_AT_magic / 8] != KS_MAGIC)
        return "it is not a gate page";
    if (words[KS_AT_layout_version / 8] != KS_LAYOUT_VERSION || words[KS_AT_total_bytes / 8] != KS_TOTAL_BYTES)
        return "it has another layout version than this program";
    if (words[KS_AT_clock_id / 8] != (uint64_t)CLOCK_BOOTTIME)
        return "its deadlines are on another clock";
    ks_boot_id(boot);
    if (memcmp((const uint8_t *)words + KS_AT_boot_id, boot, sizeof boot) != 0)
        return "it was written before this machine started";
    return NULL;
}

/* Map the page read-only. 0, or -1 with a sentence in `error`; after -1 the gate answers every question with no. */
static inline int ks_gate_open(ks_gate *gate, const char *path, char *error, size_t error_bytes)
{
    struct stat status;
    memset(gate, 0, sizeof *gate);
    if (strlen(path) >= sizeof gate->path)
        return ks_refuse(error, error_bytes, path, "its path is too long");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return ks_refuse(error, error_bytes, path, strerror(errno));
    if (fstat(fd, &status) != 0 || status.st_size < (off_t)KS_TOTAL_BYTES) {
        close(fd);
        return ks_refuse(error, error_bytes, path, "it is shorter than a page");
    }
    void *map = mmap(NULL, KS_TOTAL_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return ks_refuse(error, error_bytes, path, strerror(errno));
    const char *fault = ks_prefix_fault((const uint64_t *)map);
    if (fault != NULL) {
        munmap(map, KS_TOTAL_BYTES);
        return ks_refuse(error, error_bytes, path, fault);
    }
    gate->words = (const uint64_t *)map;
    gate->device = status.st_dev;
    gate->inode = status.st_ino;
    memcpy(gate->path, path, strlen(path) + 1);
    return 0;
}

/* Let go of the page. Every later question is answered with no. Safe to call twice. */
static inline void ks_gate_close(ks_gate *gate)
{
    if (gate->words != NULL)
        munmap((void *)(uintptr_t)gate->words, KS_TOTAL_BYTES);
    gate->words = NULL;
}

/* One attempt at a consistent copy. False: the page is being written, half written or damaged. */
static inline bool ks_try_copy(const ks_gate *gate, ks_copy *copy)
{
    uint64_t sequence = KS_LOAD_ACQUIRE(ks_word(gate, KS_AT_sequence));
    if (sequence & 1u)
        return false;
    for (uint32_t i = 0; i < KS_GUARDED_END / 8; i++)
        copy->header[i] = KS_LOAD_RELAXED(gate->words + i);
    uint64_t row_count = copy->header[KS_AT_row_count / 8];
    if (row_count > KS_MAX_ROWS)
        return false;
    for (uint32_t i = 0; i < row_count * KS_ROW_BYTES / 8; i++)
        copy->rows[i] = KS_LOAD_RELAXED(ks_word(gate, KS_HEADER_BYTES) + i);
    copy->open_until_ns = copy->header[KS_AT_open_until_ns / 8];
    copy->permit_deadline_ns = copy->header[KS_AT_permit_deadline_ns / 8];
    copy->heartbeat_ns = copy->header[KS_AT_heartbeat_ns / 8];
    KS_FENCE_ACQUIRE();
    if (KS_LOAD_RELAXED(ks_word(gate, KS_AT_sequence)) != sequence)
        return false;
    uint32_t crc = ks_crc32(0, &sequence, sizeof sequence);
    crc = ks_crc32(crc, (const uint8_t *)copy->header + KS_AT_mode, KS_GUARDED_END - KS_AT_mode);
    crc = ks_crc32(crc, copy->rows, (size_t)row_count * KS_ROW_BYTES);
    return crc == copy->header[KS_AT_check / 8] && copy->header[KS_AT_magic / 8] == KS_MAGIC &&
           copy->header[KS_AT_layout_version / 8] == KS_LAYOUT_VERSION &&
           copy->header[KS_AT_node_bytes / 8] <= KS_NAME_MAX_BYTES &&
           copy->header[KS_AT_cluster_bytes / 8] <= KS_NAME_MAX_BYTES;
}

/* The writer is between its first two stores of closing, or before its last of opening: nothing passes meanwhile. */
static inline bool ks_copy_moving(const ks_copy *copy)
{
    return copy->header[KS_AT_row_count / 8] == 0 && copy->open_until_ns == 0 && copy->permit_deadline_ns != 0;
}

/* A consistent copy within a bounded number of tries (some 3 ms at worst); false when there was none. */
static inline bool ks_gate_copy(const ks_gate *gate, ks_copy *copy)
{
    bool whole = false;
    if (gate->words == NULL)
        return false;
    for (int attempt = 0; attempt < KS_READ_TRIES; attempt++) {
        if (attempt > 0) {
            struct timespec pause = {0, KS_RETRY_NS};
            nanosleep(&pause, NULL);
        }
        whole = ks_try_copy(gate, copy);
        if (whole && !ks_copy_moving(copy))
            return true;
    }
    return whole;
}

static inline bool ks_is(const char *text, size_t bytes, const char *name)
{
    return strlen(name) == bytes && memcmp(text, name, bytes) == 0;
}

/* Does one part of a scope cover the order? An unstated attribute matches; an unknown part sets *unknown. */
static inline bool ks_part_covers(const char *part, size_t bytes, const ks_copy *copy, const ks_order *order,
                                  bool *unknown)
{
    const char *colon = (const char *)memchr(part, ':', bytes);
    if (colon == NULL || (size_t)(colon - part) + 1 >= bytes) {
        *unknown = true;
        return true;
    }
    size_t name_bytes = (size_t)(colon - part), value_bytes = bytes - name_bytes - 1;
    const char *stated = NULL;
    if (ks_is(part, name_bytes, "node")) {
        size_t node_bytes = (size_t)copy->header[KS_AT_node_bytes / 8];
        return node_bytes == value_bytes && memcmp(colon + 1, &copy->header[KS_AT_node / 8], value_bytes) == 0;
    }
    if (ks_is(part, name_bytes, "symbol"))
        stated = order->symbol;
    else if (ks_is(part, name_bytes, "venue"))
        stated = order->venue;
    else if (ks_is(part, name_bytes, "account"))
        stated = order->account;
    else if (ks_is(part, name_bytes, "desk"))
        stated = order->desk;
    else if (ks_is(part, name_bytes, "trader"))
        stated = order->trader;
    else if (ks_is(part, name_bytes, "client"))
        stated = order->client;
    else if (ks_is(part, name_bytes, "strategy"))
        stated = order->strategy;
    else
        *unknown = true;
    return stated == NULL || *stated == '\0' || ks_is(colon + 1, value_bytes, stated);
}

static inline bool ks_scope_covers(const char *scope, size_t bytes, const ks_copy *copy, const ks_order *order,
                                   bool *unknown)
{
    bool covers = true;
    if (ks_is(scope, bytes, "global"))
        return true;
    for (size_t start = 0; start <= bytes;) {
        const char *comma = start < bytes ? (const char *)memchr(scope + start, ',', bytes - start) : NULL;
        size_t end = comma != NULL ? (size_t)(comma - scope) : bytes;
        covers = ks_part_covers(scope + start, end - start, copy, order, unknown) && covers;
        start = end + 1;
    }
    return covers;
}

static inline uint16_t ks_row_u16(const uint8_t *row, uint32_t offset)
{
    return (uint16_t)(row[offset] | row[offset + 1] << 8);
}

/* Judge one row: the mode that it gives the order, KS_ACTIVE when it does not cover it; unknown rows freeze. */
static inline ks_mode ks_row_mode(const ks_copy *copy, const uint8_t *row, const ks_order *order)
{
    uint64_t mode;
    bool unknown = false;
    memcpy(&mode, row + KS_AT_row_mode, sizeof mode);
    uint16_t scope_bytes = ks_row_u16(row, KS_AT_scope_bytes);
    if ((mode != KS_REDUCE_ONLY && mode != KS_FROZEN) || scope_bytes > 240 || ks_row_u16(row, KS_AT_id_bytes) > 64 ||
        ks_row_u16(row, KS_AT_trigger_bytes) > 32 || ks_row_u16(row, KS_AT_reason_bytes) > 160)
        return KS_FROZEN;
    bool covers = ks_scope_covers((const char *)row + KS_AT_scope, scope_bytes, copy, order, &unknown);
    if (unknown)
        return KS_FROZEN;
    return covers ? (ks_mode)mode : KS_ACTIVE;
}

static inline void ks_fill(char *to, size_t room, const uint8_t *row, uint32_t text_at, uint32_t length_at)
{
    size_t bytes = ks_row_u16(row, length_at);
    bytes = bytes < room ? bytes : room - 1;
    memcpy(to, row + text_at, bytes);
    to[bytes] = '\0';
}

/* Does the mode word say what the rows say? A page that contradicts itself is damaged, however whole the copy is. */
static inline bool ks_copy_agrees(const ks_copy *copy)
{
    uint64_t strictest = KS_ACTIVE, mode;
    for (uint64_t i = 0; i < copy->header[KS_AT_row_count / 8]; i++) {
        memcpy(&mode, (const uint8_t *)copy->rows + i * KS_ROW_BYTES + KS_AT_row_mode, sizeof mode);
        strictest = mode > strictest ? mode : strictest;
    }
    return strictest == copy->header[KS_AT_mode / 8];
}

/* The strictest cause of a copy that covers the order, or KS_ACTIVE with an empty cause; says nothing of the permit. */
static inline ks_mode ks_copy_mode(const ks_copy *copy, const ks_order *order, ks_cause *cause)
{
    const uint8_t *strictest = NULL;
    ks_mode mode = KS_ACTIVE;
    for (uint64_t i = 0; i < copy->header[KS_AT_row_count / 8]; i++) {
        const uint8_t *row = (const uint8_t *)copy->rows + i * KS_ROW_BYTES;
        ks_mode found = ks_row_mode(copy, row, order);
        if (found > mode) {
            mode = found;
            strictest = row;
        }
    }
    memset(cause, 0, sizeof *cause);
    cause->mode = mode;
    cause->epoch = copy->header[KS_AT_epoch / 8];
    if (strictest != NULL) {
        ks_fill(cause->scope, sizeof cause->scope, strictest, KS_AT_scope, KS_AT_scope_bytes);
        ks_fill(cause->id, sizeof cause->id, strictest, KS_AT_id, KS_AT_id_bytes);
        ks_fill(cause->trigger, sizeof cause->trigger, strictest, KS_AT_trigger, KS_AT_trigger_bytes);
        ks_fill(cause->reason, sizeof cause->reason, strictest, KS_AT_reason, KS_AT_reason_bytes);
    }
    return mode;
}

/* True when the file at the path is not the mapped one (any more): close the gate and open it again. */
static inline bool ks_gate_replaced(const ks_gate *gate)
{
    struct stat status;
    return stat(gate->path, &status) != 0 || status.st_dev != gate->device || status.st_ino != gate->inode;
}

/*
 * The slow path: the mode that an order meets now, and the strictest cause (may be NULL). KS_FROZEN when the permit has
 * run out, the page cannot be read whole, or the gate is closed. A cause with trigger "gate_replaced" means that a new
 * page stands at the path, or none: close the gate and open it again.
 */
static inline ks_mode ks_gate_check(const ks_gate *gate, const ks_order *order, ks_cause *cause)
{
    ks_copy copy;
    ks_cause scratch;
    ks_cause *why = cause != NULL ? cause : &scratch;
    if (gate->words == NULL) {
        ks_set_cause(why, KS_FROZEN, 0, "gate", "gate_closed", "this reader of the gate is closed");
        return KS_FROZEN;
    }
    if (!ks_gate_copy(gate, &copy) || !ks_copy_agrees(&copy)) {
        bool replaced = ks_gate_replaced(gate);
        ks_set_cause(why, KS_FROZEN, 0, "gate", replaced ? "gate_replaced" : "gate_unreadable",
                     replaced ? "close the gate and open it again" : "the page is half written or damaged");
        return KS_FROZEN;
    }
    ks_mode mode = ks_copy_mode(&copy, order, why);
    /* With nothing frozen the deadline is the fast word itself: a writer that closes writes that word first. */
    bool rows = copy.header[KS_AT_row_count / 8] > 0;
    uint64_t now = ks_now_ns();
    if (now < (rows ? copy.permit_deadline_ns : copy.open_until_ns))
        return mode;
    if (now >= copy.permit_deadline_ns && ks_gate_replaced(gate))
        ks_set_cause(why, KS_FROZEN, why->epoch, "gate", "gate_replaced", "close the gate and open it again");
    else if (mode != KS_FROZEN)
        ks_set_cause(why, KS_FROZEN, why->epoch, "permit",
                     now < copy.permit_deadline_ns   ? "gate_moving"
                     : copy.permit_deadline_ns != 0  ? "permit_expired"
                                                     : "no_permit",
                     "the node has no valid permit to trade");
    return KS_FROZEN;
}

#endif
