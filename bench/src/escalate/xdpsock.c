/* The least that consumes packets by AF_XDP, with libxdp, after the kernel's xdpsock sample: the yardstick of
 * `bench escalate`. Copy mode, one UMEM, batches of 64, need_wakeup; poll when nothing is there.
 *
 *   xdpsock drop   CPU SECONDS DEV       receive and recycle; prints a JSON array of [time in ns, frames so far]
 *   xdpsock echo   CPU SECONDS DEV       receive, and send back by the same socket
 *   xdpsock bridge CPU SECONDS DEV DEV   receive on one device, send out of the other, both ways
 *
 * SECONDS 0: until killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <xdp/xsk.h>

enum { FRAMES = 8192, FRAME = XSK_UMEM__DEFAULT_FRAME_SIZE, RING = 2048, BATCH = 64, PORTS = 2 };

struct port {
	struct xsk_ring_prod fill, tx;
	struct xsk_ring_cons completion, rx;
	struct xsk_socket *socket;
	int fd;
	uint32_t sending;
};

static struct port ports[PORTS];
static struct xsk_umem *umem;
static char *area;
/* Frames that no ring has. */
static uint64_t spare[FRAMES];
static uint32_t spares;
static uint64_t frames, seen;

static void die(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error < 0 ? -error : error));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ull + at.tv_nsec;
}

/* Whatever arrives on the device goes to the socket of its queue. */
static void attach(int ifindex, struct xsk_socket *socket)
{
	int map = bpf_map_create(BPF_MAP_TYPE_XSKMAP, "sockets", 4, 4, 1, NULL);
	struct bpf_insn program[] = {
		{ BPF_LDX | BPF_MEM | BPF_W, 2, 1, offsetof(struct xdp_md, rx_queue_index), 0 },
		{ BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, map },
		{ 0, 0, 0, 0, 0 },
		{ BPF_ALU64 | BPF_MOV | BPF_K, 3, 0, 0, XDP_PASS },
		{ BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map },
		{ BPF_JMP | BPF_EXIT, 0, 0, 0, 0 },
	};
	int fd, error;

	if (map < 0)
		die("map", errno);
	fd = bpf_prog_load(BPF_PROG_TYPE_XDP, "to_socket", "GPL", program,
			   sizeof(program) / sizeof(*program), NULL);
	if (fd < 0)
		die("program", errno);
	error = xsk_socket__update_xskmap(socket, map);
	if (error)
		die("map of sockets", error);
	error = bpf_xdp_attach(ifindex, fd, XDP_FLAGS_DRV_MODE, NULL);
	if (error)
		die("attach", error);
}

static void open_port(struct port *port, const char *device, int is_first)
{
	struct xsk_socket_config config = {
		.rx_size = RING,
		.tx_size = RING,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = XDP_COPY | XDP_USE_NEED_WAKEUP,
	};
	int error;

	if (is_first) {
		struct xsk_umem_config memory = {
			.fill_size = RING * 2,
			.comp_size = RING,
			.frame_size = FRAME,
			.frame_headroom = 0,
		};
		area = mmap(NULL, (size_t)FRAMES * FRAME, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
		if (area == MAP_FAILED)
			die("memory", errno);
		error = xsk_umem__create(&umem, area, (uint64_t)FRAMES * FRAME, &port->fill,
					 &port->completion, &memory);
		if (error)
			die("umem", error);
	}
	error = xsk_socket__create_shared(&port->socket, device, 0, umem, &port->rx, &port->tx,
					  &port->fill, &port->completion, &config);
	if (error)
		die(device, error);
	port->fd = xsk_socket__fd(port->socket);
	attach(if_nametoindex(device), port->socket);
}

static void fill(struct port *port, uint32_t most)
{
	uint32_t at, count = xsk_prod_nb_free(&port->fill, most);

	count = count < most ? count : most;
	count = count < spares ? count : spares;
	if (!count || xsk_ring_prod__reserve(&port->fill, count, &at) != count)
		return;
	for (uint32_t i = 0; i < count; i++)
		*xsk_ring_prod__fill_addr(&port->fill, at + i) = spare[--spares];
	xsk_ring_prod__submit(&port->fill, count);
}

static void give_back(uint64_t addr)
{
	spare[spares++] = addr - addr % FRAME;
}

/* What has been sent is spare again. One call sends 32 frames at most. */
static void complete(struct port *port)
{
	uint32_t at, count;

	while (port->sending) {
		if (xsk_ring_prod__needs_wakeup(&port->tx))
			sendto(port->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
		count = xsk_ring_cons__peek(&port->completion, RING, &at);
		for (uint32_t i = 0; i < count; i++)
			give_back(*xsk_ring_cons__comp_addr(&port->completion, at + i));
		xsk_ring_cons__release(&port->completion, count);
		port->sending -= count;
		if (!count)
			break;
	}
}

/* The consumer's look at a packet. */
static void see(uint64_t addr, uint32_t len)
{
	const char *frame = xsk_umem__get_data(area, addr);
	uint64_t word;

	memcpy(&word, frame + 42, sizeof(word));
	seen += word + frame[len - 1];
}

/* One batch from one port to another, or to nowhere; the number of frames. */
static uint32_t move(struct port *from, struct port *to)
{
	uint32_t in, out = 0, count = xsk_ring_cons__peek(&from->rx, BATCH, &in);

	if (!count)
		return 0;
	while (to && xsk_ring_prod__reserve(&to->tx, count, &out) != count)
		complete(to);
	for (uint32_t i = 0; i < count; i++) {
		const struct xdp_desc *desc = xsk_ring_cons__rx_desc(&from->rx, in + i);

		see(desc->addr, desc->len);
		if (to)
			*xsk_ring_prod__tx_desc(&to->tx, out + i) = *desc;
		else
			give_back(desc->addr);
	}
	xsk_ring_cons__release(&from->rx, count);
	frames += count;
	if (to) {
		xsk_ring_prod__submit(&to->tx, count);
		to->sending += count;
		complete(to);
	}
	fill(from, RING * 2);
	return count;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 4 ? argv[1] : "";
	int is_bridge = !strcmp(mode, "bridge"), is_echo = !strcmp(mode, "echo");
	int count = is_bridge ? 2 : 1;
	uint64_t end = 0, next = 0, samples = 0;
	cpu_set_t cpus;

	if (argc != 4 + count || (!is_bridge && !is_echo && strcmp(mode, "drop"))) {
		fprintf(stderr, "usage: xdpsock drop|echo|bridge CPU SECONDS DEVICE [DEVICE]\n");
		return 2;
	}
	CPU_ZERO(&cpus);
	CPU_SET(atoi(argv[2]), &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		die("cpu", errno);
	for (; spares < FRAMES; spares++)
		spare[spares] = (uint64_t)spares * FRAME;
	for (int i = 0; i < count; i++) {
		open_port(&ports[i], argv[4 + i], i == 0);
		fill(&ports[i], RING * 2 / count);
	}
	if (atoi(argv[3]))
		end = now() + atoi(argv[3]) * 1000000000ull;
	while (1) {
		uint32_t moved = 0;

		for (int i = 0; i < count; i++) {
			struct port *to = is_bridge ? &ports[!i] : is_echo ? &ports[i] : NULL;

			moved += move(&ports[i], to);
		}
		if (end && now() >= next) {
			next = now();
			printf("%c[%llu,%llu]", samples++ ? ',' : '[', (unsigned long long)next,
			       (unsigned long long)frames);
			if (next >= end) {
				printf("]\n");
				break;
			}
			next += 20000000;
		}
		if (!moved) {
			struct pollfd fds[PORTS];

			for (int i = 0; i < count; i++)
				fds[i] = (struct pollfd){ .fd = ports[i].fd, .events = POLLIN };
			poll(fds, count, 20);
		}
	}
	/* What was read has a use. */
	return seen == 1 ? 3 : 0;
}
