/* Publishers to subscribers. Every payload says who sent it, as which number and when, so that a delivery that is missing,
   doubled, out of order, misrouted or damaged is seen. One thread: a turn reads what is there, then lets publishers send. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"
#include "load.h"
#include "wire.h"

#define LOST_NS 3000000000u /* a flood that waits for deliveries goes on when none has come for this long */

/* What one subscriber has of one publisher. */
struct stream {
    uint32_t next; /* the number after the highest seen */
    uint64_t *seen;
    uint32_t room; /* numbers that `seen` has bits for */
};

static struct client *publishers, *subscribers;
static struct stream *streams;
static struct histogram latency, lag;
static uint64_t started, counted, last_delivery, gap_ns;
static uint64_t delivered, delivered_before, duplicates, reordered, corrupt, misrouted, closed;
static uint64_t bytes_in;
static uint64_t expected, written_off; /* deliveries that must come; those that a flood waits for no longer */
static long cursor; /* at a rate: the next message of all publishers */
static bool counting, stopped;

static unsigned size_of(uint32_t publisher, uint32_t number) {
    if (opt.size == opt.size_max) return (unsigned)opt.size;
    uint32_t mixed = (number + 1) * 2654435761u ^ (publisher + 1) * 2246822519u;
    return (unsigned)opt.size + (mixed >> 8) % (unsigned)(opt.size_max - opt.size + 1);
}

/* To how many subscribers a message of this publisher goes. */
static uint64_t copies(const struct client *c) {
    if (*opt.layout == 'a') return (uint64_t)opt.subscribers;
    if (*opt.layout == 's') return opt.subscribers > 0;
    return (uint64_t)(opt.subscribers / opt.publishers + (c->index < opt.subscribers % opt.publishers));
}

/* -- receiving ---------------------------------------------------------------------------------------------------- */

static struct stream *stream_of(const struct client *c, uint32_t publisher) {
    if (publisher >= (uint32_t)opt.publishers) return NULL;
    if (*opt.layout == 's') return &streams[publisher];
    if (*opt.layout == 'a') return &streams[c->index * opt.publishers + publisher];
    return c->index % opt.publishers == publisher ? &streams[c->index] : NULL;
}

static void note(struct stream *stream, uint32_t number) {
    if (number >= stream->room) {
        uint32_t room = stream->room ? stream->room : 1024;
        while (room <= number) room *= 2;
        stream->seen = realloc(stream->seen, room / 8);
        if (!stream->seen) give_up("out of memory");
        memset((char *)stream->seen + stream->room / 8, 0, (room - stream->room) / 8);
        stream->room = room;
    }
    uint64_t bit = 1ull << (number & 63), *word = &stream->seen[number >> 6];
    if (*word & bit) {
        duplicates++;
        return;
    }
    *word |= bit;
    delivered++;
    if (number < stream->next && *opt.layout != 's') reordered++;
    else stream->next = number + 1;
}

static void take_publish(struct client *c, const uint8_t *in, size_t header, size_t total) {
    int qos = in[0] >> 1 & 3;
    size_t at = header + 2;
    if (total < at) give_up("a malformed PUBLISH came");
    size_t topic_len = get_u16(in + header);
    const uint8_t *topic = in + at;
    at += topic_len;
    unsigned id = 0;
    if (qos) {
        if (total < at + 2) give_up("a malformed PUBLISH came");
        id = get_u16(in + at);
        at += 2;
    }
    if (opt.version == 5) {
        uint32_t length;
        int width = at < total ? get_varint(in + at, total - at, &length) : 0;
        if (width <= 0) give_up("a malformed PUBLISH came");
        at += (size_t)width + length;
    }
    if (qos) {
        c->out_len += build_ack(room_for(c, 4), qos == 1 ? PUBACK : PUBREC, id);
    }
    if (at > total || total - at < PAYLOAD_HEAD) {
        corrupt++;
        return;
    }
    uint32_t publisher, number;
    uint64_t sent;
    memcpy(&publisher, in + at, 4);
    memcpy(&number, in + at + 4, 4);
    memcpy(&sent, in + at + 8, 8);
    struct stream *stream = stream_of(c, publisher);
    if (!stream) {
        misrouted++;
        return;
    }
    const struct client *source = &publishers[publisher];
    if (number >= source->sent || size_of(publisher, number) != total - at || strlen(source->topic) != topic_len ||
        memcmp(source->topic, topic, topic_len) || (total - at > PAYLOAD_HEAD && in[total - 1] != (uint8_t)number)) {
        corrupt++;
        return;
    }
    note(stream, number);
    bytes_in += total;
    if (heard - last_delivery > gap_ns && counting && !stopped) gap_ns = heard - last_delivery;
    last_delivery = heard;
    if (counting && sent >= counted && heard > sent) record(&latency, heard - sent);
}

static void take_ack(struct client *c, const uint8_t *in, size_t header, size_t total) {
    int type = in[0] >> 4;
    unsigned id = get_u16(in + header), code = total > header + 2 ? in[header + 2] : 0;
    if (type == PUBREC && code < 0x80) {
        c->out_len += build_ack(room_for(c, 4), PUBREL, id);
        return;
    }
    if (!id || id > c->ids || !c->busy[id]) give_up("an acknowledgement came for identifier %u, which is free", id);
    c->busy[id] = 0;
    c->inflight--;
    if (code < 0x80) {
        c->acked++;
        return;
    }
    c->refused++;
    expected -= copies(c);
}

static void pump(struct client *c, uint64_t now);

static void on_packet(struct client *c, const uint8_t *in, size_t header, size_t total) {
    int type = in[0] >> 4;
    if (type == PUBLISH && c->role == SUBSCRIBER) {
        take_publish(c, in, header, total);
    } else if (total < header + 2 && type != PINGRESP && type != DISCONNECT) {
        give_up("a malformed packet of type %d came", type);
    } else if (c->role == SUBSCRIBER && type == PUBREL) {
        c->out_len += build_ack(room_for(c, 4), PUBCOMP, get_u16(in + header));
    } else if (c->role == PUBLISHER && (type == PUBACK || type == PUBREC || type == PUBCOMP)) {
        take_ack(c, in, header, total);
    } else if (type == DISCONNECT) {
        fprintf(stderr, "load: client %ld: DISCONNECT says 0x%02x\n", c->index, total > header ? in[header] : 0);
    } else if (type != SUBACK) {
        give_up("a packet of type %d came that nobody waits for", type);
    }
}

static void on_gone(struct client *c) {
    (void)c;
    closed++;
}

static void on_writable(struct client *c) {
    if (c->role == PUBLISHER && started) pump(c, now_ns());
}

/* -- sending ------------------------------------------------------------------------------------------------------ */

static uint64_t due(long message) { return started + (uint64_t)((double)message * 1e9 / (double)opt.rate); }

static bool may_send(struct client *c, uint64_t now) {
    if (c->state != READY || stopped || (opt.messages && c->sent >= (uint32_t)opt.messages)) return false;
    if (opt.qos) {
        uint32_t window = (uint32_t)opt.window < c->receive_maximum ? (uint32_t)opt.window : c->receive_maximum;
        if (c->inflight >= window || c->busy[c->last_id % c->ids + 1]) return false;
    }
    if (!opt.rate) return !opt.ahead || expected - written_off < delivered + (uint64_t)opt.ahead;
    return due((long)c->sent * opt.publishers + c->index) <= now;
}

static void append_message(struct client *c, uint64_t now) {
    uint32_t publisher = (uint32_t)c->index, number = c->sent++;
    expected += copies(c);
    unsigned size = size_of(publisher, number);
    uint64_t stamp = now;
    if (opt.rate) {
        stamp = due((long)number * opt.publishers + c->index);
        if (counting && now > stamp) record(&lag, now - stamp);
    }
    uint8_t *out = room_for(c, c->head_len + size + 8), *at = out;
    *at++ = (uint8_t)(PUBLISH << 4 | opt.qos << 1);
    at += put_varint(at, (uint32_t)(c->head_len + size));
    memcpy(at, c->head, c->head_len);
    at += c->head_len;
    if (opt.qos) {
        c->last_id = c->last_id % c->ids + 1;
        c->busy[c->last_id] = 1;
        c->inflight++;
        put_u16(at - 2 - (opt.version == 5), c->last_id);
    }
    memcpy(at, &publisher, 4);
    memcpy(at + 4, &number, 4);
    memcpy(at + 8, &stamp, 8);
    if (size > PAYLOAD_HEAD) memset(at + PAYLOAD_HEAD, (int)(uint8_t)number, size - PAYLOAD_HEAD);
    c->out_len += (size_t)(at + size - out);
}

/* Sends what `c` may send now: one batch. */
static void pump(struct client *c, uint64_t now) {
    if (c->state != READY || c->blocked) return;
    flush_client(c);
    if (c->out_off < c->out_len) return;
    c->out_off = c->out_len = 0;
    long burst = opt.burst ? opt.burst : BATCH;
    while (burst-- && c->out_len < BATCH && may_send(c, now)) append_message(c, now);
    flush_client(c);
}

static bool pump_due(uint64_t now) {
    long total = opt.messages * opt.publishers;
    while ((!total || cursor < total) && due(cursor) <= now && !stopped) pump(&publishers[cursor++ % opt.publishers], now);
    return !total || cursor < total;
}

/* -- the run ------------------------------------------------------------------------------------------------------ */

static void prepare(struct client *c, enum role role, long index, const char *topic, bool clean) {
    *c = (struct client){.role = role, .index = index, .clean = clean};
    fill_template(c->topic, sizeof c->topic, topic, *opt.layout == 'p' ? index % opt.publishers : index);
    if (role != PUBLISHER) return;
    c->head = malloc(strlen(c->topic) + 8);
    c->head_len = put_string(c->head, c->topic);
    if (opt.qos) c->head_len += 2;
    if (opt.version == 5) c->head[c->head_len++] = 0;
    c->ids = (unsigned)opt.window * 4;
    if (c->ids > 65535) c->ids = 65535;
    c->busy = calloc(c->ids + 1, 1);
    if (!c->head || !c->busy) give_up("out of memory");
}

static void set_up(bool clean) {
    if (opt.publishers < 1 || opt.subscribers < 0) give_up("publishers must be 1 at least and subscribers not negative");
    publishers = calloc((size_t)opt.publishers, sizeof *publishers);
    subscribers = calloc((size_t)opt.subscribers + 1, sizeof *subscribers);
    size_t pairs = *opt.layout == 'a'   ? (size_t)opt.subscribers * (size_t)opt.publishers
                   : *opt.layout == 's' ? (size_t)opt.publishers
                                        : (size_t)opt.subscribers;
    streams = calloc(pairs + 1, sizeof *streams);
    if (!publishers || !subscribers || !streams) give_up("out of memory");
    for (long i = 0; i < opt.publishers; i++) prepare(&publishers[i], PUBLISHER, i, opt.topic, true);
    for (long i = 0; i < opt.subscribers; i++) prepare(&subscribers[i], SUBSCRIBER, i, opt.filter, clean);
}

static uint64_t total_of(uint32_t (*what)(const struct client *)) {
    uint64_t sum = 0;
    for (long i = 0; i < opt.publishers; i++) sum += what(&publishers[i]);
    return sum;
}

static uint32_t get_sent(const struct client *c) { return c->sent; }
static uint32_t get_acked(const struct client *c) { return c->acked; }
static uint32_t get_refused(const struct client *c) { return c->refused; }
static uint32_t get_inflight(const struct client *c) { return c->state == READY ? c->inflight : 0; }

static bool all_sent(void) {
    for (long i = 0; i < opt.publishers; i++) {
        const struct client *c = &publishers[i];
        if (c->state != READY) continue;
        if (c->out_off < c->out_len || (!stopped && !(opt.messages && c->sent >= (uint32_t)opt.messages))) return false;
    }
    return true;
}

static const struct events events = {.packet = on_packet, .writable = on_writable, .gone = on_gone};

/* Publishes until the count or the time is reached. */
static void publish_all(void) {
    started = last_delivery = now_ns();
    counted = started + (uint64_t)(opt.warmup * 1e9);
    uint64_t end = opt.seconds > 0 ? counted + (uint64_t)(opt.seconds * 1e9) : UINT64_MAX;
    counting = opt.warmup <= 0;
    while (!stopped && !all_sent()) {
        uint64_t now = now_ns();
        if (!counting && now >= counted) counting = true, delivered_before = delivered, last_delivery = now;
        if (now >= end) break;
        if (opt.ahead && now - last_delivery > LOST_NS && expected > delivered) written_off = expected - delivered;
        bool idle = true;
        if (opt.rate) {
            pump_due(now);
            idle = false;
        }
        for (long i = 0; !opt.rate && i < opt.publishers; i++) {
            pump(&publishers[i], now);
            if (!publishers[i].blocked && may_send(&publishers[i], now)) idle = false;
        }
        turn(&events, idle ? 10 : 0);
        if (opt.rate && opt.qos)
            for (long i = 0; i < opt.publishers; i++)
                if (publishers[i].out_off == publishers[i].out_len && publishers[i].inflight) pump(&publishers[i], now);
        if (closed >= (uint64_t)opt.publishers && total_of(get_inflight) == 0 && all_sent()) break;
    }
    stopped = true;
}

/* Waits for what is still under way: until everything is there, nothing comes any more, or `drain` seconds are over. */
static void drain(void) {
    uint64_t end = now_ns() + (uint64_t)(opt.drain * 1e9), idle_ns = (uint64_t)(opt.idle * 1e9);
    uint64_t progress = delivered + total_of(get_acked), since = now_ns();
    while (now_ns() < end && (delivered < expected || total_of(get_inflight) || !all_sent())) {
        turn(&events, 10);
        uint64_t latest = delivered + total_of(get_acked);
        if (latest != progress) progress = latest, since = now_ns();
        if (now_ns() - since > idle_ns) break;
    }
}

static void stop_all(void) {
    for (long i = 0; i < opt.publishers; i++) stop_client(&publishers[i]);
    for (long i = 0; i < opt.subscribers; i++) stop_client(&subscribers[i]);
}

static void print_counts(void) {
    uint64_t all = expected;
    printf(
        "\"sent\": %lu, \"acked\": %lu, \"refused\": %lu, \"expected\": %lu, \"delivered\": %lu, \"lost\": %lu, ",
        total_of(get_sent), total_of(get_acked), total_of(get_refused), all, delivered,
        all > delivered ? all - delivered : 0
    );
    printf(
        "\"duplicates\": %lu, \"reordered\": %lu, \"corrupt\": %lu, \"misrouted\": %lu, \"closed\": %lu, ", duplicates,
        reordered, corrupt, misrouted, closed
    );
}

/* The rate is counted from the end of the warm-up to the last delivery, also of what was still under way when publishing
   stopped: a broker that takes everything first and delivers later is not faster, nor slower. The CPU time is that of the
   whole run over all deliveries. */
int run_pubsub(void) {
    if (!opt.messages && opt.seconds <= 0) give_up("pubsub needs messages=N or seconds=T");
    if (opt.rate < 0 || (opt.rate && !opt.messages && opt.seconds <= 0)) give_up("rate=%ld is negative", opt.rate);
    set_up(!opt.persistent);
    connect_all(subscribers, opt.subscribers);
    connect_all(publishers, opt.publishers);
    double broker_cpu = opt.pid ? cpu_seconds(opt.pid) : 0, self_cpu = cpu_seconds(0);
    publish_all();
    drain();
    double all_seconds = (double)(now_ns() - started) / 1e9;
    broker_cpu = opt.pid ? cpu_seconds(opt.pid) - broker_cpu : 0;
    self_cpu = cpu_seconds(0) - self_cpu;
    uint64_t within = delivered - delivered_before;
    double seconds = last_delivery > counted ? (double)(last_delivery - counted) / 1e9 : 0;
    printf(
        "{\"scenario\": \"pubsub\", \"layout\": \"%s\", \"publishers\": %ld, \"subscribers\": %ld, \"qos\": %ld, "
        "\"version\": %ld, \"size\": %ld, \"size_max\": %ld, \"window\": %ld, \"target_rate\": %ld, ",
        opt.layout, opt.publishers, opt.subscribers, opt.qos, opt.version, opt.size, opt.size_max, opt.window, opt.rate
    );
    print_counts();
    printf(
        "\"seconds\": %.4f, \"rate\": %.1f, \"mb_per_s\": %.2f, \"longest_gap_ms\": %.3f, ", seconds,
        seconds > 0 ? (double)within / seconds : 0.0, (double)bytes_in / all_seconds / 1e6, (double)gap_ns / 1e6
    );
    print_histogram("latency_us", &latency);
    if (opt.rate) print_histogram("lag_us", &lag);
    print_cost(broker_cpu, self_cpu, all_seconds, opt.subscribers ? delivered : total_of(get_sent));
    stop_all();
    return 0;
}

/* Subscribers leave sessions behind, publishers fill their queues, subscribers come back and empty them. */
int run_offline(void) {
    if (!opt.messages || !opt.qos) give_up("offline needs messages=N and qos=1 or 2");
    set_up(false);
    connect_all(subscribers, opt.subscribers);
    for (long i = 0; i < opt.subscribers; i++) stop_client(&subscribers[i]);
    connect_all(publishers, opt.publishers);
    double broker_cpu = opt.pid ? cpu_seconds(opt.pid) : 0, self_cpu = cpu_seconds(0);
    publish_all();
    while (total_of(get_inflight)) turn(&events, 10);
    double fill = (double)(now_ns() - started) / 1e9;
    long queued_kib = opt.pid ? memory_kib(opt.pid, "VmRSS") : 0;
    uint64_t back = last_delivery = now_ns();
    /* what is queued comes right after CONNACK, while others still connect: take it with the same events */
    for (long i = 0; i < opt.subscribers; i++) start_client(&subscribers[i]);
    drain();
    double emptied = last_delivery > back ? (double)(last_delivery - back) / 1e9 : 0;
    broker_cpu = opt.pid ? cpu_seconds(opt.pid) - broker_cpu : 0;
    self_cpu = cpu_seconds(0) - self_cpu;
    printf(
        "{\"scenario\": \"offline\", \"publishers\": %ld, \"subscribers\": %ld, \"qos\": %ld, \"version\": %ld, ",
        opt.publishers, opt.subscribers, opt.qos, opt.version
    );
    print_counts();
    printf(
        "\"fill_seconds\": %.4f, \"fill_rate\": %.1f, \"drain_seconds\": %.4f, \"drain_rate\": %.1f, \"queued_rss_kib\": %ld, ",
        fill, (double)total_of(get_sent) / fill, emptied, emptied > 0 ? (double)delivered / emptied : 0.0, queued_kib
    );
    print_cost(broker_cpu, self_cpu, fill + emptied, delivered);
    stop_all();
    for (long i = 0; i < opt.subscribers; i++) subscribers[i].clean = true; /* leaves no session behind */
    connect_all(subscribers, opt.subscribers);
    for (long i = 0; i < opt.subscribers; i++) stop_client(&subscribers[i]);
    return 0;
}
