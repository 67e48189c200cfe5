// The DFI's DRAM side: finds the commands in each system clock and hands them to C, which is called in no other clock.

module simulated_dram #(
    parameter int NPHASES = 4,
    parameter int ADDRESS_BITS = 14,
    parameter int BANK_BITS = 3,
    parameter int BURST_BITS = 512,
    parameter int READ_LATENCY = 8,  // system clocks from READ to rddata, at least 2
    parameter int WRITE_LATENCY = 1  // system clocks from WRITE to wrdata
) (
    input  bit clock,
    input  bit [NPHASES-1:0] cs_n, ras_n, cas_n, we_n, cke, reset_n,
    input  bit [NPHASES*BANK_BITS-1:0] bank,
    input  bit [NPHASES*ADDRESS_BITS-1:0] address,
    input  bit [NPHASES-1:0] wrdata_en,
    input  bit [BURST_BITS-1:0] wrdata,
    input  bit [BURST_BITS/8-1:0] wrdata_mask,
    output bit [BURST_BITS-1:0] rddata
);
    // pins: 0 RAS#, 1 CAS#, 2 WE#, 3 CKE and RESET# both high, 4 wrdata_en in this system clock
    import "DPI-C" function void simulated_dram_command(
        input int phase, input int pins, input int bank, input int address, output bit [BURST_BITS-1:0] burst);
    import "DPI-C" function void simulated_dram_data(
        input bit [BURST_BITS-1:0] burst, input bit [BURST_BITS/8-1:0] mask);

    localparam bit [2:0] WRITE = 3'b001, READ = 3'b101;  // WE#, CAS#, RAS#
    localparam int DEPTH = READ_LATENCY - 1;
    localparam bit [BURST_BITS-1:0] UNDRIVEN = {BURST_BITS / 32{32'hdeadbeef}};

    bit [NPHASES-1:0] selected;
    bit [BURST_BITS-1:0] bursts [DEPTH];  // on their way to rddata
    bit [DEPTH-1:0] returning;
    bit [$clog2(DEPTH)-1:0] turn;
    bit driven, writes;
    bit [WRITE_LATENCY:0] writing;  // bit n: a WRITE was issued n clocks ago

    assign selected = ~cs_n & ~(ras_n & cas_n & we_n);

    always_comb begin
        writes = 0;
        for (int p = 0; p < NPHASES; p++)
            writes |= selected[p] && {we_n[p], cas_n[p], ras_n[p]} == WRITE;
    end

    generate
        if (WRITE_LATENCY == 0) assign writing = writes;
        else begin : delayed
            bit [WRITE_LATENCY-1:0] earlier;
            assign writing = {earlier, writes};
            always @(posedge clock) earlier <= writing[WRITE_LATENCY-1:0];
        end
    endgenerate

    always @(posedge clock) begin
        turn <= turn == DEPTH - 1 ? 0 : turn + 1;
        driven <= returning[turn];
        if (returning[turn]) rddata <= bursts[turn];
        else if (driven) rddata <= UNDRIVEN;
        returning[turn] = 0;
        if (|selected)
            for (int p = 0; p < NPHASES; p++)
                if (selected[p]) begin
                    bit [BURST_BITS-1:0] burst;
                    simulated_dram_command(
                        p, 32'({|wrdata_en, cke[p] & reset_n[p], we_n[p], cas_n[p], ras_n[p]}),
                        32'(bank[p*BANK_BITS +: BANK_BITS]), 32'(address[p*ADDRESS_BITS +: ADDRESS_BITS]), burst);
                    if ({we_n[p], cas_n[p], ras_n[p]} == READ) begin
                        bursts[turn] = burst;
                        returning[turn] = 1;
                    end
                end
        if (writing[WRITE_LATENCY]) simulated_dram_data(wrdata, wrdata_mask);
    end
endmodule
