/*
 * Print what a gate page says, as one line of JSON:
 *
 *     gcc -std=c11 -O2 -o gate_state example.c && ./gate_state /dev/shm/killswitch/prod/gate
 *
 * With --batch, answer orders instead: each line of standard input has seven attributes (symbol, venue, account, desk,
 * trader, client, strategy) separated by tabs, empty for not stated; each answer is "FAST MODE EPOCH TRIGGER ID".
 * FAST is 1 when the fast path let the order pass. Exit status: 0, or 1 when there is no page to read.
 */
#include "killswitch_gate.h"

#include <inttypes.h>

static void print_text(const char *text, size_t bytes)
{
    putchar('"');
    for (size_t i = 0; i < bytes; i++) {
        unsigned char ch = (unsigned char)text[i];
        if (ch == '"' || ch == '\\')
            printf("\\%c", ch);
        else if (ch < 0x20 || ch == 0x7f)
            printf("\\u%04x", (unsigned)ch);
        else
            putchar(ch);
    }
    putchar('"');
}

static void print_cause(const ks_copy *copy, uint64_t index)
{
    const uint8_t *row = (const uint8_t *)copy->rows + index * KS_ROW_BYTES;
    const struct {
        const char *name;
        uint32_t text_at, length_at, room;
    } texts[] = {{"scope", KS_AT_scope, KS_AT_scope_bytes, 240},
                 {"id", KS_AT_id, KS_AT_id_bytes, 64},
                 {"trigger", KS_AT_trigger, KS_AT_trigger_bytes, 32},
                 {"reason", KS_AT_reason, KS_AT_reason_bytes, 160}};
    uint64_t mode;
    memcpy(&mode, row + KS_AT_row_mode, sizeof mode);
    printf("%s{\"mode\":%" PRIu64, index ? "," : "", mode);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        uint32_t bytes = ks_row_u16(row, texts[i].length_at);
        printf(",\"%s\":", texts[i].name);
        print_text((const char *)row + texts[i].text_at, bytes < texts[i].room ? bytes : texts[i].room);
    }
    putchar('}');
}

static int print_state(const ks_gate *gate)
{
    static ks_copy copy;
    if (!ks_gate_copy(gate, &copy)) {
        fprintf(stderr, "the gate page is half written or damaged: everything is frozen\n");
        return 1;
    }
    printf("{\"schema\":\"killswitch.gate/1\",\"cluster\":");
    print_text((const char *)&copy.header[KS_AT_cluster / 8], (size_t)copy.header[KS_AT_cluster_bytes / 8]);
    printf(",\"node\":");
    print_text((const char *)&copy.header[KS_AT_node / 8], (size_t)copy.header[KS_AT_node_bytes / 8]);
    printf(",\"open\":%s,\"mode\":%" PRIu64 ",\"epoch\":%" PRIu64, ks_gate_allows_fast(gate) ? "true" : "false",
           copy.header[KS_AT_mode / 8], copy.header[KS_AT_epoch / 8]);
    printf(",\"now_ns\":%" PRIu64 ",\"open_until_ns\":%" PRIu64 ",\"permit_deadline_ns\":%" PRIu64, ks_now_ns(),
           copy.open_until_ns, copy.permit_deadline_ns);
    printf(",\"changed_at_ns\":%" PRIu64 ",\"heartbeat_ns\":%" PRIu64, copy.header[KS_AT_changed_at_ns / 8],
           copy.heartbeat_ns);
    printf(",\"sequence\":%" PRIu64 ",\"writer_pid\":%" PRIu64 ",\"writer_instance\":%" PRIu64 ",\"causes\":[",
           copy.header[KS_AT_sequence / 8], copy.header[KS_AT_writer_pid / 8], copy.header[KS_AT_writer_instance / 8]);
    for (uint64_t i = 0; i < copy.header[KS_AT_row_count / 8]; i++)
        print_cause(&copy, i);
    printf("]}\n");
    return 0;
}

static int answer_orders(const ks_gate *gate)
{
    char line[4096];
    while (fgets(line, sizeof line, stdin) != NULL) {
        const char *fields[7] = {NULL};
        char *at = line;
        line[strcspn(line, "\n")] = '\0';
        for (int i = 0; i < 7 && at != NULL; i++) {
            fields[i] = at;
            at = strchr(at, '\t');
            if (at != NULL)
                *at++ = '\0';
        }
        ks_order order = {fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6]};
        ks_cause cause;
        bool fast = ks_gate_allows_fast(gate);
        ks_mode mode = ks_gate_check(gate, &order, &cause);
        printf("%d %d %" PRIu64 " %s %s\n", fast, (int)mode, cause.epoch, cause.trigger[0] ? cause.trigger : "-",
               cause.id[0] ? cause.id : "-");
        fflush(stdout);
    }
    return 0;
}

int main(int argc, char **argv)
{
    char error[512];
    ks_gate gate;
    bool batch = argc == 3 && strcmp(argv[1], "--batch") == 0;
    if (argc != 2 && !batch) {
        fprintf(stderr, "usage: %s [--batch] PATH\n", argv[0]);
        return 2;
    }
    if (ks_gate_open(&gate, argv[argc - 1], error, sizeof error) != 0) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    int status = batch ? answer_orders(&gate) : print_state(&gate);
    ks_gate_close(&gate);
    return status;
}
