/* An address of either family and a port, as they stand on a command line. */
#include <arpa/inet.h>
#include <err.h>
#include <stdlib.h>
#include <sys/socket.h>

struct address {
	struct sockaddr_storage at;
	socklen_t len;
};

static struct address address_of(const char *host, const char *port)
{
	struct address address = {};
	struct sockaddr_in *four = (void *)&address.at;
	struct sockaddr_in6 *six = (void *)&address.at;

	if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
		four->sin_family = AF_INET;
		four->sin_port = htons(atoi(port));
		address.len = sizeof(*four);
	} else if (inet_pton(AF_INET6, host, &six->sin6_addr) == 1) {
		six->sin6_family = AF_INET6;
		six->sin6_port = htons(atoi(port));
		address.len = sizeof(*six);
	} else {
		errx(2, "%s is no IP address", host);
	}
	return address;
}

/* A socket of `type`, bound there. */
static int bound(const char *host, const char *port, int type)
{
	struct address address = address_of(host, port);
	int one = 1, opened = socket(address.at.ss_family, type, 0);

	setsockopt(opened, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(opened, (void *)&address.at, address.len) || (type == SOCK_STREAM && listen(opened, 128)))
		err(1, "%s, port %s", host, port);
	return opened;
}

/* A socket of `type` to there. */
static int connected(const struct address *address, int type)
{
	int opened = socket(address->at.ss_family, type, 0);

	if (opened < 0 || connect(opened, (const void *)&address->at, address->len))
		err(1, "connect");
	return opened;
}
