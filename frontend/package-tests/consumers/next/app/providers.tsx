"use client";

import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { createClient, ETLProvider } from "pulso-etl";
import { type ReactNode, useState } from "react";

export function Providers({ baseUrl, children }: { baseUrl: string; children: ReactNode }) {
  const [queries] = useState(() => new QueryClient());
  const [client] = useState(() => createClient({ baseUrl }));
  return (
    <QueryClientProvider client={queries}>
      <ETLProvider client={client}>{children}</ETLProvider>
    </QueryClientProvider>
  );
}
